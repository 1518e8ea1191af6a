"""The losses of a step, part by part: CLIP's on photographs, the names', SAM's on masks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from samclip_core.nn.network import SamClipNet
from training import workers
from training.data.targets import StoredTargets
from training.distillation.dense import DenseHead, DenseTeacher
from training.distillation.features import autocast, dense_teacher_loss, patch_loss
from training.distillation.losses import (
    DICE_LOSSES,
    clip_loss,
    name_loss,
    sam_distillation_loss,
)
from training.distillation.sampling import Drawn, Photos
from training.distillation.segmentation import Batch, Criterion, Prompts, decode, segment_step
from training.loop import Part
from training.recipes import Run

DENSE_HEAD = "dense_head"  # the part of a student that learns the dense teacher's features


class PhotoTeachers(NamedTuple):
    """The teachers on photographs: CLIP's, the class names of the named sets, a dense teacher.

    ``clip(pixels_B3SS, sizes_B2)`` returns ``dense_BDhw`` and ``pooled_BD``; ``kept`` are its
    stored outputs, used instead. ``names_LD`` are the text embeddings of the class names. Every
    vector has length 1. With a ``dense`` teacher, the student has a ``DENSE_HEAD``.
    """

    clip: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    names_LD: Tensor
    kept: StoredTargets | None = None
    dense: DenseTeacher | None = None


def clip_parts(
    run: Run,
    net: SamClipNet,
    drawn: Drawn,
    teachers: PhotoTeachers,
    embedding: Callable[[Photos, Tensor], Tensor] | None = None,
) -> Iterator[Part]:
    """Yield the weighted losses of the photographs, then those of the names."""
    recipe = run.recipe
    weights = {
        "clip": 1.0,
        "dense": recipe.dense_weight,
        "embedding": recipe.embedding_weight,
        "dense_teacher": recipe.dense_teacher_weight,
    }
    for photos in drawn.photos:
        losses = _photo_losses(run, net, photos, teachers, embedding)
        first, *others = (weights[name] * loss for name, loss in losses.items())
        share = len(photos.pixels_B3SS) / recipe.clip_images
        shown = {name: share * loss.detach() for name, loss in losses.items()}
        yield Part(share * sum(others, first), shown)

    for named in drawn.named:
        with autocast(run):
            _, dense_BDhw, _ = net.encode(named.pixels_B3SS, named.sizes_B2)
        logits_BLhw = torch.einsum("bdhw,ld->blhw", dense_BDhw.float(), teachers.names_LD)
        name = name_loss(run.config.logit_scale * logits_BLhw, named.share_BLhw)
        share = len(named.pixels_B3SS) / recipe.named_images
        yield Part(recipe.name_weight * share * name, {"name": share * name.detach()})


def _photo_losses(
    run: Run,
    net: SamClipNet,
    photos: Photos,
    teachers: PhotoTeachers,
    embedding: Callable[[Photos, Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Return L_CLIP (paper, equation 1) and the optional losses by their names."""
    with autocast(run):
        target_BDhw, target_BD = photos.dense_BDhw, photos.pooled_BD
        if target_BD is None:
            target_BDhw, target_BD = teachers.clip(photos.pixels_B3SS, photos.sizes_B2)
        sam_BDhw, tokens_BDhw = net.image_encoder(photos.pixels_B3SS, photos.sizes_B2)
        dense_BDhw, pooled_BD = net.clip_head(tokens_BDhw, photos.sizes_B2)
    losses = {"clip": clip_loss(pooled_BD.float(), target_BD.float()).mean()}
    if run.recipe.dense_weight:
        if target_BDhw is None:
            raise ValueError(
                "the recipe has dense_weight, but the CLIP teacher's outputs have no dense "
                "maps: store them as well, or use --set dense_weight=0"
            )
        losses["dense"] = patch_loss(photos, dense_BDhw.float(), target_BDhw.float())
    if embedding is not None:
        losses["embedding"] = embedding(photos, sam_BDhw)
    if teachers.dense is not None:
        head = net.get_submodule(DENSE_HEAD)
        assert isinstance(head, DenseHead)
        taught = dense_teacher_loss(run, head, teachers.dense, photos, tokens_BDhw)
        losses["dense_teacher"] = taught
    return losses


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
        with autocast(run):
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
