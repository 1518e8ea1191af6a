"""The stages of the merge: the edge SAM teacher, head probing, joint distillation, adaptation.

All but the first are the paper's; the first is needed because no published SAM has the edge's size.
Networks stay in evaluation mode: the trunk keeps ImageNet's batch statistics, so an output never
depends on the rest of its batch.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from samclip_core.families.edge.network import EdgeEncoder
from samclip_core.io import checkpoint
from samclip_core.nn.network import SAM_PARTS, SamClipNet
from training import workers
from training.distillation.losses import sam_loss
from training.distillation.objectives import (
    MaskLoss,
    NameLoss,
    PhotoLoss,
    PhotoTeachers,
    sam_criterion,
)
from training.distillation.sampling import VALIDATION_STEPS, Drawn, Kinds, Sampler, batches
from training.distillation.segmentation import Batch, Criterion
from training.distillation.teachers import load_trunk
from training.distillation.while_training import measure
from training.loop import Objective, Stage
from training.recipes import ADAPTATION, HEAD_PROBING, JOINT, SAM_TEACHER, STAGES, Recipe, Run
from training.schedule import Parameters, Schedule, optimizer

Lesson = tuple[Kinds, Sequence[Objective[SamClipNet]]]
"""The data of a stage's steps, and the losses on them."""
_BLOCK = re.compile(r"(.*\.)?(res)?blocks\.\d+")
"""Names of the blocks of a ViT, of MobileSAM's encoder and of a CLIP head."""
SHAPES = 64
"""Most shapes of one kind of block that are compiled: sides, batches, with gradients or without."""


def prepare(recipe: Recipe, net: SamClipNet, teachers: Iterable[nn.Module]) -> None:
    """Compute activations again or keep them, and compile the networks, as the recipe says.

    What their blocks do between products of matrices is fused then. A block that cannot be compiled
    runs as it is.
    """
    for module in net.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = recipe.checkpointing  # type: ignore[assignment]
    if not recipe.compile:
        return
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.suppress_errors = True
    for network in (net, *teachers):
        for name, module in network.named_modules():
            if _BLOCK.fullmatch(name):
                module.compile(dynamic=False)


def train_sam_teacher(run: Run, teacher: SamClipNet, schedule: Schedule) -> None:
    """Train the edge SAM to segment from prompts, starting from ImageNet's trunk or a checkpoint.

    A frozen trunk is always ImageNet's; only the neck and the head start from a checkpoint then.
    """
    encoder = teacher.image_encoder
    assert isinstance(encoder, EdgeEncoder)
    if run.start:
        checkpoint.load_weights(checkpoint.resolve(run.start), lambda: teacher, SAM_PARTS)
    if not run.start or not schedule.encoder_rate:
        load_trunk(encoder)
    encoder.trunk.requires_grad_(schedule.encoder_rate > 0)
    others = [named for named in teacher.named_parameters() if ".trunk." not in named[0]]

    def outlined(batch: Batch) -> Criterion:
        return lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm)

    learning = optimizer(schedule, encoder.trunk.named_parameters(), others)
    lesson = Kinds(outlined=True), [MaskLoss(run, outlined)]
    _fit(run, SAM_TEACHER, lesson, teacher, learning, schedule)


def head_probing(
    run: Run,
    net: SamClipNet,
    teachers: PhotoTeachers,
    schedule: Schedule,
    stage: str = HEAD_PROBING,
) -> None:
    """Run stage I: only Head_CLIP learns; the encoder is still SAM's."""
    net.requires_grad_(False)
    learning = optimizer(schedule, (), _head_clip(net))
    _fit(run, stage, _photo_lesson(run, teachers), net, learning, schedule, teachers)


def resolution_adaptation(
    run: Run,
    net: SamClipNet,
    teachers: PhotoTeachers,
    schedule: Schedule,
) -> None:
    """Run stage III: Head_CLIP also learns frames of SAM's size, so that one encoding is enough."""
    run = replace(run, recipe=replace(run.recipe, photo_sides=run.recipe.adaptation_sides))
    head_probing(run, net, teachers, schedule, ADAPTATION)


def _photo_lesson(run: Run, teachers: PhotoTeachers) -> Lesson:
    """Return the losses on photographs and, if they have a weight, on names."""
    objectives: list[Objective[SamClipNet]] = [PhotoLoss(run, teachers.clip)]
    if run.recipe.name_weight:
        objectives.append(NameLoss(run, teachers.names_LD))
    photos, named = run.recipe.photo_sides, run.recipe.name_weight > 0
    kinds = Kinds(photos=photos, view=teachers.clip.view, named=named)
    return kinds, objectives


def _head_clip(net: SamClipNet) -> Parameters:
    """Make Head_CLIP trainable; return its named parameters."""
    return [*net.get_submodule("clip_head").requires_grad_(True).named_parameters()]


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
    recipe = run.recipe
    kinds, objectives = _photo_lesson(run, teachers)
    if recipe.sam_weight:
        masks = MaskLoss(run, sam_criterion(run, sam_teacher), recipe.sam_weight)
        kinds, objectives = replace(kinds, outlined=True), [*objectives, masks]
    slow = [*net.image_encoder.named_parameters(), *net.mask_decoder.named_parameters()]
    learning = optimizer(schedule, slow, _head_clip(net))
    _fit(run, JOINT, (kinds, objectives), net, learning, schedule, teachers)


def _fit(
    run: Run,
    stage: str,
    lesson: Lesson,
    net: SamClipNet,
    learning: torch.optim.Optimizer,
    schedule: Schedule,
    teachers: PhotoTeachers | None = None,
) -> None:
    """Train a stage on its ``Sampler``'s steps, validate on held-out photographs, report."""
    net.to(run.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    net.zero_grad()  # those of an earlier stage would count in the norm to clip
    kinds, objectives = lesson
    training = Sampler(run, STAGES.index(stage), kinds)
    # Validate without names: too few held-out photographs have them to choose the better head.
    unnamed = replace(kinds, named=False)
    held_out = Sampler(run, STAGES.index(stage), unnamed, held_out=True)

    measured = None
    if schedule.stop_on:
        assert teachers is not None
        assert teachers.text_encoder is not None
        measured = measure(run, teachers.text_encoder, schedule.stop_on)

    def drawn(sampler: Sampler, steps: range, readers: int) -> Iterator[Drawn]:
        return (step.to(run.device) for step in batches(sampler, steps, readers))

    Stage(stage, net, learning, schedule, run.folder, objectives).fit(
        lambda steps: drawn(training, steps, run.readers or 0),
        lambda: drawn(held_out, range(VALIDATION_STEPS), run.readers or 0),
        workers.report,
        measured,
    )
