"""The stages of the merge: the edge SAM teacher, head probing, joint distillation, adaptation.

All but the first are the paper's; the first is needed because no published SAM has the edge's size.
Networks stay in evaluation mode: the trunk keeps ImageNet's batch statistics, so an output never
depends on the rest of its batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from samclip_core.io import checkpoint
from samclip_core.nn.edge import EdgeEncoder
from samclip_core.nn.network import SAM_PARTS, SamClipNet
from training import workers
from training.distillation.features import embedding_criterion
from training.distillation.losses import DICE_LOSSES, sam_loss
from training.distillation.parts import (
    DENSE_HEAD,
    PhotoTeachers,
    clip_parts,
    sam_criterion,
    sam_parts,
)
from training.distillation.sampling import VALIDATION_STEPS, Drawn, Kinds, Sampler, batches
from training.distillation.segmentation import Batch, Criterion
from training.distillation.teachers import load_trunk
from training.loop import Part, Stage
from training.recipes import Recipe, Run
from training.schedule import Named, Schedule, optimizer

NAMES = SAM_TEACHER, HEAD_PROBING, JOINT, ADAPTATION = (
    "sam-teacher",
    "head-probing",
    "joint",
    "adaptation",
)


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
    others = [named for named in teacher.named_parameters() if ".trunk." not in named[0]]
    dice = DICE_LOSSES[run.recipe.dice]

    def outlined(batch: Batch) -> Criterion:
        return lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm, dice)

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from sam_parts(run, net, drawn, outlined)

    learning = optimizer(schedule, encoder.trunk.named_parameters(), others)
    kinds = Kinds(outlined=True)
    _fit(run, SAM_TEACHER, kinds, teacher, learning, schedule, parts)


def head_probing(run: Run, net: SamClipNet, teachers: PhotoTeachers, schedule: Schedule) -> None:
    """Run stage I: only Head_CLIP and a dense teacher's head learn; the encoder is still SAM's."""
    _clip_stage(run, HEAD_PROBING, net, teachers, schedule)


def resolution_adaptation(
    run: Run, net: SamClipNet, teachers: PhotoTeachers, schedule: Schedule
) -> None:
    """Run stage III: Head_CLIP also learns frames of SAM's size, so that one encoding is enough."""
    _clip_stage(run, ADAPTATION, net, teachers, schedule)


def _clip_stage(
    run: Run, stage: str, net: SamClipNet, teachers: PhotoTeachers, schedule: Schedule
) -> None:
    recipe = run.recipe
    sides = recipe.photo_sides
    if stage == ADAPTATION:
        sides = recipe.adaptation_sides
        teachers = teachers._replace(kept=None, dense=None)
    net.requires_grad_(False)
    learning = optimizer(schedule, (), _new_heads(net, teachers))

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from clip_parts(run, net, drawn, teachers)

    kinds = Kinds(photos=sides, named=recipe.name_weight > 0, kept=teachers.kept)
    _fit(run, stage, kinds, net, learning, schedule, parts)


def _new_heads(net: SamClipNet, teachers: PhotoTeachers) -> Named:
    """Make the heads trainable that photographs teach; return their named parameters."""
    names = ["clip_head"] if teachers.dense is None else ["clip_head", DENSE_HEAD]
    heads = [net.get_submodule(name).requires_grad_(True) for name in names]
    return [named for head in heads for named in head.named_parameters()]


def joint_distillation(
    run: Run,
    net: SamClipNet,
    teachers: PhotoTeachers,
    sam_teacher: SamClipNet,
    schedule: Schedule,
) -> None:
    """Run stage II: the encoder and all heads learn from all teachers in every optimizer step.

    The prompt encoder stays frozen; the encoder and Head_SAM learn at a fraction of Head_CLIP's
    rate (paper, section 2). With λ = 0, SAM is not rehearsed.
    """
    sam_teacher.eval().requires_grad_(False)
    net.requires_grad_(True)
    net.prompt_encoder.requires_grad_(False)
    weight = run.recipe.sam_weight
    embedding = None
    if run.recipe.embedding_weight:
        embedding = embedding_criterion(run, NAMES.index(JOINT), sam_teacher)

    def parts(net: SamClipNet, drawn: Drawn) -> Iterator[Part]:
        yield from clip_parts(run, net, drawn, teachers, embedding)
        yield from sam_parts(run, net, drawn, sam_criterion(run, sam_teacher), weight)

    slow = [*net.image_encoder.named_parameters(), *net.mask_decoder.named_parameters()]
    learning = optimizer(schedule, slow, _new_heads(net, teachers))
    recipe = run.recipe
    kinds = Kinds(
        photos=recipe.photo_sides,
        outlined=weight > 0,
        named=recipe.name_weight > 0,
        kept=teachers.kept,
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

    shown = _shown(run.recipe, stage, kinds, net)
    Stage(stage, net, learning, schedule, run.folder, shown).fit(
        lambda steps: drawn(training, steps, run.readers or 0),
        parts,
        lambda: drawn(held_out, range(VALIDATION_STEPS), 0),
        workers.report,
        run.measure,
    )


def _shown(recipe: Recipe, stage: str, kinds: Kinds, net: SamClipNet) -> list[str]:
    """Return the names of all figures that a stage's parts display."""
    photos = bool(kinds.photos)
    names = {
        "clip": photos,
        "dense": photos and recipe.dense_weight > 0,
        "dense_teacher": stage != ADAPTATION and hasattr(net, DENSE_HEAD),
        "embedding": stage == JOINT and recipe.embedding_weight > 0,
        "name": kinds.named,
        "sam": kinds.outlined,
    }
    return [name for name, there in names.items() if there]
