"""Estimate the cost of a ``vit-b`` merge: memory, arithmetic, steps, hours, money.

    python -m training.results.budget --recipe vit-b

All numbers are computed from the networks (``training.results.footprint``) and the plan. The speed
of a GPU follows from one assumption, its utilisation.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samclip_core.config import VIT_B
from training.results.footprint import Forward, Memory, count_forward, estimate_memory

SAM_SIDE = VIT_B.image_size
SIDES = (224, 448, SAM_SIDE)
FRAMES_PER_CORE = {224: 490.0, 448: 320.0, SAM_SIDE: 255.0}
"""Frames of the CLIP loss that a core reads per second, by their side, from JPEG files of 640×480
(``python -m benchmarks.data_path`` on one core of an AMD EPYC)."""
SAM_FRAMES_PER_CORE = 45.0
"""The same for SA-1B's, from JPEG files of 1500×1000 with 38 masks."""
D_CLIP = 40_200_000  # the paper's 40.6 million images without the held-out 1%


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU: ``peak`` dense bfloat16 FLOP/s, ``price`` in US dollars per hour, ``memory`` in bytes.

    The price is an assumption: a typical cloud price in 2026 for one GPU of a node of eight.
    """

    name: str
    peak: float
    price: float
    memory: float = 80e9


H100 = Accelerator(name="H100", peak=989e12, price=3.0)
A100 = Accelerator(name="A100", peak=312e12, price=1.8)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a plan: ``sides`` of frames occur equally often; ``all`` adds SAM's batch."""

    name: str
    epochs: float
    sides: tuple[int, ...]
    learns: Literal["head", "all"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers; the defaults are the paper's (section 2).

    Each mask gets ``rounds`` prompts, one after another. ``checkpointing`` computes the student's
    blocks twice. ``utilisation`` is the assumed share of a GPU's peak.
    """

    name: str
    images: int
    stages: tuple[Stage, ...]
    batch: int = 2048
    sam_images: int = 32
    sam_prompts: int = 32
    rounds: int = 11
    checkpointing: bool = False
    gpus: int = 8
    utilisation: float = 0.35


def stages(probing: float, joint: float, adaptation: float) -> tuple[Stage, ...]:
    """Return the paper's three stages with the given epochs."""
    return (
        Stage(name="I head probing", epochs=probing, sides=SIDES[:2], learns="head"),
        Stage(name="II joint distillation", epochs=joint, sides=SIDES[:2], learns="all"),
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


def step_flops(plan: Plan, stage: Stage, forward: Forward) -> float:
    """Return the FLOPs of an optimizer step over all GPUs; a backward pass costs two forward."""
    learning = 4 if plan.checkpointing else 3
    encoding = learning if stage.learns == "all" else 1
    sides = [
        encoding * forward.encoder[side] + learning * forward.head[side] + forward.clip_teacher
        for side in stage.sides
    ]
    clip = plan.batch * sum(sides) / len(sides)
    if stage.learns == "head":
        return clip
    # The teacher has the student's size and also decodes every prompt.
    prompts = plan.sam_prompts * plan.rounds * (3 + 1) * forward.prompt
    return clip + plan.sam_images * ((learning + 1) * forward.encoder[SAM_SIDE] + prompts)


def cores(plan: Plan, stage: Stage, forward: Forward, gpu: Accelerator) -> float:
    """Return how many cores must read frames to keep one GPU busy."""
    seconds = plan.batch * sum(1 / FRAMES_PER_CORE[side] for side in stage.sides) / len(stage.sides)
    if stage.learns == "all":
        seconds += plan.sam_images / SAM_FRAMES_PER_CORE
    return seconds * plan.utilisation * gpu.peak / step_flops(plan, stage, forward)


def hours(plan: Plan, stage: Stage, forward: Forward, gpu: Accelerator) -> float:
    """Return the wall-clock hours of a stage on all GPUs of the plan."""
    speed = plan.gpus * plan.utilisation * gpu.peak
    return steps(plan, stage) * step_flops(plan, stage, forward) / speed / 3600


def report(plans: Sequence[Plan], forward: Forward, memory: Memory) -> str:
    """Return the budget as Markdown."""
    clip = ", ".join(f"{rate:.0f} at {side} px" for side, rate in FRAMES_PER_CORE.items())
    introduction = _INTRODUCTION.format(clip=clip, sam=SAM_FRAMES_PER_CORE)
    sections = [introduction, _arithmetic(forward), _memory(memory)]
    for plan in plans:
        sections += [f"## {plan.name}", _assumptions(plan), _schedule(plan, forward)]
    return "\n\n".join(sections) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the budget and write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m training.results.budget", description=__doc__)
    parser.add_argument("--recipe", choices=PLANS, default="vit-b")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("BUDGET.md"))
    arguments = parser.parse_args(argv)
    counted = VIT_B, SIDES, VIT_B.text.model
    text = report(PLANS[arguments.recipe], count_forward(*counted), estimate_memory(*counted))
    print(text)
    arguments.out.write_text(text)
    return 0


_INTRODUCTION = """# Cost of the `vit-b` merge

Generated by `python -m training.results.budget --recipe vit-b`. All numbers are computed from the
networks of this repository; none is measured on a GPU. FLOPs are exact for these networks (a
multiplication and an addition are two); memory is an estimate; hours follow from an assumed
utilisation, cost from an assumed price. The cores that read frames follow
from `python -m benchmarks.data_path`, in frames per second and core: {clip};
SA-1B {sam:.0f}. A GPU's own process needs one more core."""


def _arithmetic(forward: Forward) -> str:
    rows = [
        (f"student and SAM teacher, encoder, {side} px", forward.encoder[side]) for side in SIDES
    ]
    rows += [(f"student, Head_CLIP, {side} px", forward.head[side]) for side in SIDES]
    rows += [
        ("CLIP teacher, ViT-L/14 at 224 px, with patches", forward.clip_teacher),
        ("prompt encoder and mask decoder, one prompt", forward.prompt),
    ]
    shown = [(name, f"{flops / 1e9:,.1f}", f"{3 * flops / 1e9:,.1f}") for name, flops in rows]
    return (
        "## Arithmetic of one image\n\n"
        + _table(("part", "forward, GFLOP", "forward and backward (3×)"), shown)
        + "\n\nWith gradient checkpointing, trained parts cost 4× instead of 3×. Attention encodes "
        "relative\npositions in widened queries and keys, which is exact and needs no map of all "
        "pairs in memory, but at\n1024 px costs three times the arithmetic of plain attention in "
        "global blocks."
    )


def _memory(memory: Memory) -> str:
    free = H100.memory - memory.held
    rows = [
        (
            f"{side} px",
            f"{plain / 1e6:,.0f}",
            f"{small / 1e6:,.0f}",
            f"{free / plain:,.0f}",
            f"{free / small:,.0f}",
        )
        for side, plain, small in (
            (side, memory.image[side], memory.image_checkpointed[side]) for side in SIDES
        )
    ]
    head = ("frame", "MB per image", "checkpointed", "images at once", "checkpointed")
    return (
        f"## Memory of one GPU\n\nConstant: {memory.held / 1e9:.1f} GB (weights, their average, "
        "gradients, optimizer moments, both teachers).\nActivations of the encoder and Head_CLIP "
        "in bfloat16, and the most images that fit into 80 GB at once:\n\n"
        + _table(head, rows)
        + f"\n\nIn every round, each prompt of SAM's batch adds {memory.prompt / 1e6:,.0f} MB "
        "until the backward pass of its frames."
    )


def _assumptions(plan: Plan) -> str:
    return (
        f"{plan.images / 1e6:.2f} M images, {plan.batch} per step; in stage II also "
        f"{plan.sam_images} images of SA-1B × {plan.sam_prompts} masks × {plan.rounds} prompts.\n"
        f"{plan.gpus} GPUs at {plan.utilisation:.0%} of their bfloat16 peak "
        f"({H100.name} {H100.peak / 1e12:.0f}, {A100.name} {A100.peak / 1e12:.0f} TFLOP/s), "
        f"{'with' if plan.checkpointing else 'without'} checkpointing;\n"
        f"${H100.price:.2f} and ${A100.price:.2f} per GPU-hour."
    )


def _schedule(plan: Plan, forward: Forward) -> str:
    gpus = (H100, A100)
    rows, totals = [], [0.0 for _ in gpus]
    for stage in plan.stages:
        spent = [hours(plan, stage, forward, gpu) for gpu in gpus]
        totals = [total + more for total, more in zip(totals, spent, strict=True)]
        rows.append(
            (
                stage.name,
                f"{stage.epochs:g}",
                f"{steps(plan, stage):,}",
                f"{step_flops(plan, stage, forward) / 1e12:,.0f}",
                f"{steps(plan, stage) * plan.batch / spent[0] / 3600:,.0f}",
                f"{cores(plan, stage, forward, gpus[0]):.1f}",
                *(f"{value:,.1f}" for value in spent),
            )
        )
    rows.append(("**all**", *[""] * 5, *(f"**{total:,.1f}**" for total in totals)))
    costs = (
        f"**${plan.gpus * total * gpu.price:,.0f}**"
        for total, gpu in zip(totals, gpus, strict=True)
    )
    rows.append(("**cost**", *[""] * 5, *costs))
    names = (f"hours, {plan.gpus} × {gpu.name}" for gpu in gpus)
    reading = (f"images per second, {gpus[0].name}", f"cores to read them, per {gpus[0].name}")
    return _table(("stage", "epochs", "steps", "TFLOP per step", *reading, *names), rows)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = tuple(head)
    marks = ("---", *("---:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


if __name__ == "__main__":
    raise SystemExit(main())
