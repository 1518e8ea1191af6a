"""The losses of a step, part by part: CLIP's on photographs, the names', SAM's on masks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.nn.encoder import valid_mask
from samclip_core.nn.network import SamClipNet
from training import workers
from training.data.targets import StoredTargets
from training.distillation.losses import (
    DICE_LOSSES,
    clip_loss,
    dense_loss,
    embedding_loss,
    name_loss,
    sam_distillation_loss,
)
from training.distillation.sampling import Drawn, Kinds, Photos, Sampler
from training.distillation.segmentation import Batch, Criterion, Prompts, decode, segment_step
from training.distillation.standardise import PhiS
from training.loop import Part
from training.recipes import Run

STANDARDISED_STEPS = 4  # steps of photographs to fit the standardisation of SAM's embedding


class ClipTeachers(NamedTuple):
    """The teachers of Head_CLIP: a teacher of images, and the class names of the named sets.

    ``images(pixels_B3SS, sizes_B2)`` returns ``dense_BDhw`` and ``pooled_BD``; ``kept`` are its
    stored outputs, used instead. ``names_LD`` are the text embeddings of the class names. Every
    vector has length 1.
    """

    images: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    names_LD: Tensor
    kept: StoredTargets | None = None


def clip_parts(
    run: Run,
    net: SamClipNet,
    drawn: Drawn,
    teachers: ClipTeachers,
    embedding: Callable[[Photos, Tensor], Tensor] | None = None,
) -> Iterator[Part]:
    """Yield L_CLIP (paper, equation 1) with the optional losses on patches, SAM and names."""
    recipe = run.recipe
    for photos in drawn.photos:
        with _autocast(run):
            target_BDhw, target_BD = photos.dense_BDhw, photos.pooled_BD
            if target_BD is None:
                target_BDhw, target_BD = teachers.images(photos.pixels_B3SS, photos.sizes_B2)
            sam_BDhw, dense_BDhw, pooled_BD = net.encode(photos.pixels_B3SS, photos.sizes_B2)
        shown = {"clip": clip_loss(pooled_BD.float(), target_BD.float()).mean()}
        loss = shown["clip"]
        if recipe.dense_weight:
            if target_BDhw is None:
                raise ValueError(
                    "the recipe has dense_weight, but the CLIP teacher's outputs have no dense "
                    "maps: store them as well, or use --set dense_weight=0"
                )
            shown["dense"] = _patch_loss(photos, dense_BDhw.float(), target_BDhw.float())
            loss = loss + recipe.dense_weight * shown["dense"]
        if embedding is not None:
            shown["embedding"] = embedding(photos, sam_BDhw)
            loss = loss + recipe.embedding_weight * shown["embedding"]
        share = len(photos.pixels_B3SS) / recipe.clip_images
        yield Part(share * loss, {key: share * value.detach() for key, value in shown.items()})

    for named in drawn.named:
        with _autocast(run):
            _, dense_BDhw, _ = net.encode(named.pixels_B3SS, named.sizes_B2)
        logits_BLhw = torch.einsum("bdhw,ld->blhw", dense_BDhw.float(), teachers.names_LD)
        name = name_loss(run.config.logit_scale * logits_BLhw, named.share_BLhw)
        share = len(named.pixels_B3SS) / recipe.named_images
        yield Part(recipe.name_weight * share * name, {"name": share * name.detach()})


def _patch_loss(photos: Photos, dense_BDhw: Tensor, target_BDhw: Tensor) -> Tensor:
    """Return the cosine loss of patches on the coarser of both grids."""
    grid = min(dense_BDhw.shape[-1], target_BDhw.shape[-1])
    student, teacher = (F.adaptive_avg_pool2d(x, grid) for x in (dense_BDhw, target_BDhw))
    stride = photos.pixels_B3SS.shape[-1] // grid
    return dense_loss(student, teacher, valid_mask(photos.sizes_B2, grid, grid, stride))


def embedding_criterion(
    run: Run, stage: int, teacher: SamClipNet
) -> Callable[[Photos, Tensor], Tensor]:
    """Return the loss on the teacher's standardised SAM embedding of photographs."""

    def targets(photos: Photos) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _autocast(run):
            sam_BDhw = teacher.image_encoder(photos.pixels_B3SS, photos.sizes_B2).sam_BDhw
        grid, side = sam_BDhw.shape[-1], photos.pixels_B3SS.shape[-1]
        return sam_BDhw.float(), valid_mask(photos.sizes_B2, grid, grid, side // grid)

    def features() -> Iterator[Tensor]:
        sampler = Sampler(run, stage, Kinds(photos=run.recipe.photo_sides), whole=True)
        for step in range(STANDARDISED_STEPS):
            for photos in sampler[step].to(run.device).photos:
                sam_BDhw, valid_Bhw = targets(photos)
                yield sam_BDhw.permute(0, 2, 3, 1)[valid_Bhw]

    standard = PhiS.fit(features())

    def loss(photos: Photos, sam_BDhw: Tensor) -> Tensor:
        target_BDhw, valid_Bhw = targets(photos)
        return embedding_loss(standard(sam_BDhw.float()), standard(target_BDhw), valid_Bhw)

    return loss


def sam_parts(
    run: Run,
    net: SamClipNet,
    drawn: Drawn,
    criterion: Callable[[Batch], Criterion],
    weight: float = 1.0,
) -> Iterator[Part]:
    """Yield the mask loss; every mask of the global batch has the same weight."""
    own = sum(len(batch.target_Pmm) for batch in drawn.outlined)
    total = workers.summed(torch.tensor(float(own), device=run.device))
    for batch in drawn.outlined:
        with _autocast(run):
            sam_BDhw = net.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw
            heads = net.prompt_encoder, net.mask_decoder
            loss = segment_step(*heads, sam_BDhw, batch, drawn.clicks, criterion(batch))
        share = len(batch.target_Pmm) / total
        yield Part(weight * share * loss, {"sam": share * loss.detach()})


def sam_criterion(run: Run, teacher: SamClipNet) -> Callable[[Batch], Criterion]:
    """Return L_SAM against the teacher's masks for the same prompts (paper, equation 2)."""
    dice = DICE_LOSSES[run.recipe.dice]

    def criterion(batch: Batch) -> Criterion:
        with torch.no_grad():
            sam_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw

        def compare(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> Tensor:
            heads = teacher.prompt_encoder, teacher.mask_decoder
            with torch.no_grad():
                targets = decode(*heads, sam_BDhw, batch, prompts)
            return sam_distillation_loss(logits_P4mm, iou_P4, *targets, dice)

        return compare

    return criterion


def _autocast(run: Run) -> torch.autocast:
    half = run.recipe.dtype == "bfloat16"
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=half)
