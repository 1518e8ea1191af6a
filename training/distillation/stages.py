"""The stages of the merge: the edge SAM teacher, head probing, joint distillation, adaptation.

All but the first are the paper's; the first is needed because no published SAM has the edge's size.
Networks stay in evaluation mode: the trunk keeps ImageNet's batch statistics, so an output never
depends on the rest of its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.io import checkpoint
from samclip_core.nn.edge import EdgeEncoder
from samclip_core.nn.encoder import valid_mask
from samclip_core.nn.network import SAM_PARTS, SamClipNet
from training import workers
from training.data.targets import StoredTargets
from training.distillation.losses import (
    clip_loss,
    dense_loss,
    embedding_loss,
    name_loss,
    sam_distillation_loss,
    sam_loss,
)
from training.distillation.sampling import VALIDATION_STEPS, Drawn, Kinds, Photos, Sampler, batches
from training.distillation.segmentation import Batch, Criterion, Prompts, decode, segment_step
from training.distillation.standardise import PhiS
from training.distillation.teachers import load_trunk
from training.loop import Part, Schedule, Stage, optimizer
from training.recipes import Run

STANDARDISED_STEPS = 4  # steps of photographs to fit the standardisation of SAM's embedding
NAMES = SAM_TEACHER, HEAD_PROBING, JOINT, ADAPTATION = (
    "sam-teacher",
    "head-probing",
    "joint",
    "adaptation",
)


class ClipTeachers(NamedTuple):
    """The teachers of Head_CLIP: a teacher of images, and the class names of the named sets.

    ``images(pixels_B3SS, sizes_B2)`` returns ``dense_BDhw`` and ``pooled_BD``; ``kept`` are its
    stored outputs, used instead. ``names_LD`` are the text embeddings of the class names. Every
    vector has length 1.
    """

    images: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    names_LD: Tensor
    kept: StoredTargets | None = None


def train_sam_teacher(run: Run, teacher: SamClipNet, schedule: Schedule) -> None:
    """Train the edge SAM to segment from prompts, starting from ImageNet's trunk or a checkpoint.

    A frozen trunk is always ImageNet's; only the neck and the head start from a checkpoint then.
    """
    encoder = teacher.image_encoder
    assert isinstance(encoder, EdgeEncoder)
    if run.start:
        checkpoint.load_weights(checkpoint.resolve(run.start), teacher, SAM_PARTS)
    if not run.start or not schedule.encoder_rate:
        load_trunk(encoder)
    encoder.trunk.requires_grad_(schedule.encoder_rate > 0)
    trunk = list(encoder.trunk.parameters())
    others = [p for name, p in teacher.named_parameters() if ".trunk." not in name]

    def outlined(batch: Batch) -> Criterion:
        return lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm)

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from _sam_parts(run, net, drawn, outlined)

    learning = optimizer(schedule, trunk, others)
    kinds = Kinds(outlined=True)
    _fit(run, SAM_TEACHER, kinds, teacher, learning, schedule, parts)


def head_probing(run: Run, net: SamClipNet, teachers: ClipTeachers, schedule: Schedule) -> None:
    """Run stage I: only Head_CLIP learns; the encoder is still SAM's."""
    _clip_stage(run, HEAD_PROBING, net, teachers, schedule)


def resolution_adaptation(
    run: Run, net: SamClipNet, teachers: ClipTeachers, schedule: Schedule
) -> None:
    """Run stage III: Head_CLIP also learns frames of SAM's size, so that one encoding is enough."""
    _clip_stage(run, ADAPTATION, net, teachers, schedule)


def _clip_stage(
    run: Run, stage: str, net: SamClipNet, teachers: ClipTeachers, schedule: Schedule
) -> None:
    net.requires_grad_(False)
    net.clip_head.requires_grad_(True)
    recipe = run.recipe

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from _clip_parts(run, net, drawn, teachers)

    learning = optimizer(schedule, (), net.clip_head.parameters())
    sides = recipe.adaptation_sides if stage == ADAPTATION else recipe.photo_sides
    kept = None if stage == ADAPTATION else teachers.kept
    kinds = Kinds(photos=sides, named=recipe.name_weight > 0, kept=kept)
    _fit(run, stage, kinds, net, learning, schedule, parts)


def joint_distillation(
    run: Run,
    net: SamClipNet,
    clip_teachers: ClipTeachers,
    sam_teacher: SamClipNet,
    schedule: Schedule,
) -> None:
    """Run stage II: the encoder and both heads learn from both teachers in every optimizer step.

    The prompt encoder stays frozen; the encoder and Head_SAM learn at a fraction of Head_CLIP's
    rate (paper, section 2). With λ = 0, SAM is not rehearsed.
    """
    sam_teacher.eval().requires_grad_(False)
    net.requires_grad_(True)
    net.prompt_encoder.requires_grad_(False)
    weight = run.recipe.sam_weight
    embedding = _embedding_criterion(run, sam_teacher) if run.recipe.embedding_weight else None

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from _clip_parts(run, net, drawn, clip_teachers, embedding)
        yield from _sam_parts(run, net, drawn, _sam_criterion(run, sam_teacher), weight)

    slow = [*net.image_encoder.parameters(), *net.mask_decoder.parameters()]
    learning = optimizer(schedule, slow, net.clip_head.parameters())
    recipe = run.recipe
    kinds = Kinds(
        photos=recipe.photo_sides,
        outlined=weight > 0,
        named=recipe.name_weight > 0,
        kept=clip_teachers.kept,
    )
    _fit(run, JOINT, kinds, net, learning, schedule, parts)


def _fit(
    run: Run,
    stage: str,
    kinds: Kinds,
    net: SamClipNet,
    learning: torch.optim.Optimizer,
    schedule: Schedule,
    parts: Callable[[SamClipNet, Drawn], Iterator[Part]],
) -> None:
    """Train a stage on its ``Sampler``'s steps, validate on held-out photographs, report."""
    net.to(run.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    training = Sampler(run, NAMES.index(stage), kinds)
    # Validate without names: too few held-out photographs have them to choose the better head.
    held_out = Sampler(run, NAMES.index(stage), replace(kinds, named=False), held_out=True)

    def drawn(sampler: Sampler, steps: range, readers: int) -> Iterator[Drawn]:
        return (step.to(run.device) for step in batches(sampler, steps, readers))

    Stage(stage, net, learning, schedule, run.folder).fit(
        lambda steps: drawn(training, steps, run.readers),
        parts,
        lambda: drawn(held_out, range(VALIDATION_STEPS), 0),
        workers.report,
    )


def _clip_parts(
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
        if recipe.dense_weight and target_BDhw is not None:
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


def _embedding_criterion(run: Run, teacher: SamClipNet) -> Callable[[Photos, Tensor], Tensor]:
    """Return the loss on the teacher's standardised SAM embedding of photographs."""

    def targets(photos: Photos) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _autocast(run):
            sam_BDhw = teacher.image_encoder(photos.pixels_B3SS, photos.sizes_B2).sam_BDhw
        grid, side = sam_BDhw.shape[-1], photos.pixels_B3SS.shape[-1]
        return sam_BDhw.float(), valid_mask(photos.sizes_B2, grid, grid, side // grid)

    def features() -> Iterator[Tensor]:
        sampler = Sampler(run, NAMES.index(JOINT), Kinds(photos=run.recipe.photo_sides), whole=True)
        for step in range(STANDARDISED_STEPS):
            for photos in sampler[step].to(run.device).photos:
                sam_BDhw, valid_Bhw = targets(photos)
                yield sam_BDhw.permute(0, 2, 3, 1)[valid_Bhw]

    standard = PhiS.fit(features())

    def loss(photos: Photos, sam_BDhw: Tensor) -> Tensor:
        target_BDhw, valid_Bhw = targets(photos)
        return embedding_loss(standard(sam_BDhw.float()), standard(target_BDhw), valid_Bhw)

    return loss


def _sam_parts(
    run: Run,
    net: SamClipNet,
    drawn: Drawn,
    criterion: Callable[[Batch], Criterion],
    weight: float = 1.0,
) -> Iterator[Part]:
    """Yield the mask loss; every mask of the global batch has the same weight."""
    total = workers.summed(torch.tensor(float(sum(len(b.target_Pmm) for b in drawn.outlined))))
    for batch in drawn.outlined:
        with _autocast(run):
            sam_BDhw = net.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw
            heads = net.prompt_encoder, net.mask_decoder
            loss = segment_step(*heads, sam_BDhw, batch, drawn.rounds, criterion(batch))
        share = len(batch.target_Pmm) / float(total)
        yield Part(weight * share * loss, {"sam": share * loss.detach()})


def _sam_criterion(run: Run, teacher: SamClipNet) -> Callable[[Batch], Criterion]:
    """Return L_SAM against the teacher's masks for the same prompts (paper, equation 2)."""

    def criterion(batch: Batch) -> Criterion:
        with torch.no_grad():
            sam_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw

        def compare(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
            heads = teacher.prompt_encoder, teacher.mask_decoder
            with torch.no_grad():
                targets = decode(*heads, sam_BDhw, batch, prompts)
            return sam_distillation_loss(logits_P4mm, iou_P4, *targets)

        return compare

    return criterion


def _autocast(run: Run) -> torch.autocast:
    half = run.recipe.dtype == "bfloat16"
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=half)
