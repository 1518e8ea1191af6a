"""The arithmetic of a ``vit-b`` merge's cost: steps, FLOPs, seconds, memory and cores per GPU."""

import math
from dataclasses import dataclass
from typing import Literal

from samclip_core.config import VIT_B
from training.recipes import vit_b
from training.results.footprint import Forward, Memory

RECIPE = vit_b()
SAM_SIDE = VIT_B.image_size
SIDES = RECIPE.adaptation_sides
FRAMES_PER_CORE = {224: 490.0, 448: 320.0, SAM_SIDE: 255.0}
"""Frames of the CLIP loss that a core reads per second, by their side, from JPEG files of 640×480
(``python -m benchmarks.data_path`` on one core of an AMD EPYC)."""
SAM_FRAMES_PER_CORE = 40.0
"""The same for SA-1B's with their prompts, from JPEG files of 1500×1000 with 38 masks."""
D_CLIP = 40_200_000  # the paper's 40.6 million images without the held-out 1%


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU: ``peak`` dense bfloat16 FLOP/s, ``price`` in US dollars per hour, ``memory`` in bytes.

    ``links`` are the bytes per second and direction between the GPUs of a node (NVLink) and, per
    GPU, between nodes. The price is an assumption: a typical cloud price in 2026 for one GPU of a
    node of eight.
    """

    name: str
    peak: float
    price: float
    links: tuple[float, float]
    memory: float = 80e9


H100 = Accelerator(name="H100", peak=989e12, price=3.0, links=(450e9, 50e9))
A100 = Accelerator(name="A100", peak=312e12, price=1.8, links=(300e9, 25e9))
NODE = 8  # GPUs of a node
REACHED = 0.5  # assumed share of a link's bytes per second


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a plan: ``sides`` of frames occur equally often; ``all`` adds SAM's batch."""

    name: str
    epochs: float
    sides: tuple[int, ...]
    learns: Literal["head", "all"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers; the defaults are those of the recipe, most of which are the paper's.

    Each mask gets ``rounds`` prompts, one after another. ``at_once`` and ``sam_at_once`` images
    form one forward pass. ``checkpointing`` computes the student's blocks twice. ``utilisation`` is
    the assumed share of a GPU's peak.
    """

    name: str
    images: int
    stages: tuple[Stage, ...]
    batch: int = RECIPE.clip_images
    at_once: int = RECIPE.at_once
    sam_images: int = RECIPE.sam_batch.images
    sam_at_once: int = RECIPE.sam_batch.at_once
    sam_prompts: int = RECIPE.sam_batch.prompts
    rounds: int = RECIPE.sam_batch.rounds + 2 * RECIPE.sam_batch.refined
    checkpointing: bool = RECIPE.checkpointing
    utilisation: float = 0.35


def stages(probing: float, joint: float, adaptation: float) -> tuple[Stage, ...]:
    """Return the paper's three stages with the given epochs."""
    return (
        Stage(name="I head probing", epochs=probing, sides=RECIPE.photo_sides, learns="head"),
        Stage(name="II joint distillation", epochs=joint, sides=RECIPE.photo_sides, learns="all"),
        Stage(name="III resolution adaptation", epochs=adaptation, sides=SIDES, learns="head"),
    )


PLANS = {
    "vit-b": (
        Plan(name="The paper's schedule", images=D_CLIP, stages=stages(20, 16, 3)),
        Plan(
            name="Shortened: a tenth of the images, half of the epochs, three prompts per mask",
            images=D_CLIP // 10,
            stages=stages(10, 8, 1.5),
            rounds=3,
        ),
    )
}


def steps(plan: Plan, stage: Stage) -> int:
    """Return the number of optimizer steps of a stage."""
    return round(stage.epochs * plan.images / plan.batch)


def image_flops(plan: Plan, stage: Stage, forward: Forward) -> tuple[float, float]:
    """Return the FLOPs of an image of CLIP's batch and of one of SAM's, gradients included.

    A backward pass costs two forward passes.
    """
    learning = 4 if plan.checkpointing else 3
    encoding = learning if stage.learns == "all" else 1
    sides = [
        encoding * forward.encoder[side] + learning * forward.head[side] + forward.clip_teacher
        for side in stage.sides
    ]
    if stage.learns == "head":
        return sum(sides) / len(sides), 0.0
    # The teacher has the student's size and also decodes every prompt.
    prompts = plan.sam_prompts * plan.rounds * (3 + 1) * forward.prompt
    return sum(sides) / len(sides), (learning + 1) * forward.encoder[SAM_SIDE] + prompts


def step_flops(plan: Plan, stage: Stage, forward: Forward) -> float:
    """Return the FLOPs of an optimizer step over all GPUs."""
    clip, sam = image_flops(plan, stage, forward)
    return plan.batch * clip + plan.sam_images * sam


def step_seconds(
    plan: Plan, stage: Stage, forward: Forward, memory: Memory, gpu: Accelerator, gpus: int
) -> float:
    """Return the seconds of a step: the GPU with most images, then the sum of the gradients.

    The sum is a ring all-reduce after the backward pass, over the slowest link of the GPUs.
    """
    clip, sam = image_flops(plan, stage, forward)
    most = math.ceil(plan.batch / gpus) * clip + math.ceil(plan.sam_images / gpus) * sam
    link = REACHED * gpu.links[gpus > NODE]
    reduced = 2 * (gpus - 1) / gpus * memory.gradients[stage.learns]
    return most / (plan.utilisation * gpu.peak) + reduced / link


def peak_memory(plan: Plan, stage: Stage, memory: Memory, gpus: int) -> float:
    """Return the bytes that a GPU needs at most; a frozen encoder's activations are counted too."""
    image = memory.image_checkpointed if plan.checkpointing else memory.image
    at_once = min(plan.at_once, math.ceil(plan.batch / gpus))
    passes = [at_once * max(image[side] for side in stage.sides)]
    if stage.learns == "all":
        sam = min(plan.sam_at_once, math.ceil(plan.sam_images / gpus))
        passes.append(sam * (image[SAM_SIDE] + plan.sam_prompts * plan.rounds * memory.prompt))
    return memory.held + max(passes)


def cores(plan: Plan, stage: Stage, forward: Forward, gpu: Accelerator) -> float:
    """Return how many cores must read frames to keep one GPU busy."""
    seconds = plan.batch * sum(1 / FRAMES_PER_CORE[side] for side in stage.sides) / len(stage.sides)
    if stage.learns == "all":
        seconds += plan.sam_images / SAM_FRAMES_PER_CORE
    return seconds * plan.utilisation * gpu.peak / step_flops(plan, stage, forward)
