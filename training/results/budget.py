"""What a ``vit-b`` merge costs before it is started: memory, arithmetic, steps, hours, money.

    python -m training.results.budget --recipe vit-b

Everything is counted from the networks (``training.results.footprint``) and from the plain numbers
of the plan. The speed of a GPU follows from one assumed number, its utilisation.
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
D_CLIP = 40_200_000  # the paper's 40.6 million images without the hundredth that is held out


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """``peak``: dense bfloat16 FLOP/s of the data sheet; ``memory`` in bytes; US dollars an hour.

    The price is an assumption, about what clouds ask in 2026 for one GPU of a node of eight.
    """

    name: str
    peak: float
    price: float
    memory: float = 80e9


H100 = Accelerator(name="H100", peak=989e12, price=3.0)
A100 = Accelerator(name="A100", peak=312e12, price=1.8)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``sides`` of frames are drawn equally often; where ``all`` learns, SAM's batch comes too."""

    name: str
    epochs: float
    sides: tuple[int, ...]
    learns: Literal["head", "all"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in plain numbers; the defaults are the paper's (section 2).

    ``rounds`` prompts are asked of every mask, one after another. ``checkpointing`` computes the
    student's blocks twice. ``utilisation`` is the share of its peak that a GPU is assumed to reach.
    """

    name: str
    images: int
    stages: tuple[Stage, ...]
    batch: int = 2048
    sam_images: int = 32
    sam_prompts: int = 32
    rounds: int = 10
    checkpointing: bool = False
    gpus: int = 8
    utilisation: float = 0.35


def stages(probing: float, joint: float, adaptation: float) -> tuple[Stage, ...]:
    """The paper's three stages with so many epochs each."""
    return (
        Stage(name="I head probing", epochs=probing, sides=SIDES[:2], learns="head"),
        Stage(name="II joint distillation", epochs=joint, sides=SIDES[:2], learns="all"),
        Stage(name="III resolution adaptation", epochs=adaptation, sides=SIDES, learns="head"),
    )


PLANS = {
    "vit-b": (
        Plan(name="The paper's schedule", images=D_CLIP, stages=stages(20, 16, 3)),
        Plan(
            name="Shortened: a tenth of the images, half of the epochs, three prompts a mask",
            images=D_CLIP // 10,
            stages=stages(10, 8, 1.5),
            rounds=3,
        ),
    )
}


def steps(plan: Plan, stage: Stage) -> int:
    """Optimizer steps of a stage."""
    return round(stage.epochs * plan.images / plan.batch)


def step_flops(plan: Plan, stage: Stage, forward: Forward) -> float:
    """FLOPs of an optimizer step over all GPUs; a backward pass costs two forward ones."""
    learning = 4 if plan.checkpointing else 3
    encoding = learning if stage.learns == "all" else 1
    sides = [
        encoding * forward.encoder[side] + learning * forward.head[side] + forward.clip_teacher
        for side in stage.sides
    ]
    clip = plan.batch * sum(sides) / len(sides)
    if stage.learns == "head":
        return clip
    # The teacher is as large as the student, and answers every prompt as well.
    prompts = plan.sam_prompts * plan.rounds * (3 + 1) * forward.prompt
    return clip + plan.sam_images * ((learning + 1) * forward.encoder[SAM_SIDE] + prompts)


def hours(plan: Plan, stage: Stage, forward: Forward, gpu: Accelerator) -> float:
    """Wall-clock hours of a stage on all GPUs of the plan."""
    speed = plan.gpus * plan.utilisation * gpu.peak
    return steps(plan, stage) * step_flops(plan, stage, forward) / speed / 3600


def report(plans: Sequence[Plan], forward: Forward, memory: Memory) -> str:
    """The budget as Markdown."""
    sections = [_INTRODUCTION, _arithmetic(forward), _room(memory)]
    for plan in plans:
        sections += [f"## {plan.name}", _assumptions(plan), _schedule(plan, forward)]
    return "\n\n".join(sections) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the budget, and write it."""
    parser = argparse.ArgumentParser(prog="python -m training.results.budget", description=__doc__)
    parser.add_argument("--recipe", choices=PLANS, default="vit-b")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("BUDGET.md"))
    arguments = parser.parse_args(argv)
    counted = VIT_B, SIDES, VIT_B.text.model
    text = report(PLANS[arguments.recipe], count_forward(*counted), estimate_memory(*counted))
    print(text)
    arguments.out.write_text(text)
    return 0


_INTRODUCTION = """# What the `vit-b` merge costs

Made by `python -m training.results.budget --recipe vit-b`. Counted from the networks of this
repository, not measured: no GPU was at hand. FLOPs are exact for these networks
(multiply and add are two); memory is an estimate; hours follow from an assumed utilisation, money
from an assumed price."""


def _arithmetic(forward: Forward) -> str:
    rows = [
        (f"student and SAM teacher, encoder, {side} px", forward.encoder[side]) for side in SIDES
    ]
    rows += [(f"student, Head_CLIP, {side} px", forward.head[side]) for side in SIDES]
    rows += [
        ("CLIP teacher, ViT-L/14 at its 224 px, with its patches", forward.clip_teacher),
        ("prompt encoder and mask decoder, one prompt", forward.prompt),
    ]
    shown = [(name, f"{flops / 1e9:,.1f}", f"{3 * flops / 1e9:,.1f}") for name, flops in rows]
    return (
        "## Arithmetic of one image\n\n"
        + _table(("part", "forward, GFLOP", "forward and backward (3×)"), shown)
        + "\n\nWith gradient checkpointing, what learns costs 4× instead of 3×. Attention carries "
        "its relative\npositions in widened queries and keys: exact, without a map of all pairs in "
        "memory, and at 1024 px\nthree times the arithmetic of plain attention in global blocks."
    )


def _room(memory: Memory) -> str:
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
    head = ("frame", "MB an image", "checkpointed", "images at once", "checkpointed")
    return (
        f"## Memory of one GPU\n\nHeld all the time: {memory.held / 1e9:.1f} GB (weights, their "
        "average, gradients, the optimizer's moments,\nboth teachers). Activations of encoder and "
        "Head_CLIP in bfloat16, and how many images at once 80 GB\nwould hold at most:\n\n"
        + _table(head, rows)
        + f"\n\nEvery prompt of SAM's batch keeps {memory.prompt / 1e6:,.0f} MB more until its "
        "frames' backward pass, in every round."
    )


def _assumptions(plan: Plan) -> str:
    return (
        f"{plan.images / 1e6:.2f} M images, {plan.batch} in a step; in stage II also "
        f"{plan.sam_images} images of SA-1B × {plan.sam_prompts} masks × {plan.rounds} prompts.\n"
        f"{plan.gpus} GPUs at {plan.utilisation:.0%} of their bfloat16 peak "
        f"({H100.name} {H100.peak / 1e12:.0f}, {A100.name} {A100.peak / 1e12:.0f} TFLOP/s), "
        f"{'with' if plan.checkpointing else 'without'} checkpointing;\n"
        f"${H100.price:.2f} and ${A100.price:.2f} an hour and GPU."
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
                *(f"{value:,.1f}" for value in spent),
            )
        )
    rows.append(("**all**", *[""] * 4, *(f"**{total:,.1f}**" for total in totals)))
    costs = (
        f"**${plan.gpus * total * gpu.price:,.0f}**"
        for total, gpu in zip(totals, gpus, strict=True)
    )
    rows.append(("**cost**", *[""] * 4, *costs))
    names = (f"hours, {plan.gpus} × {gpu.name}" for gpu in gpus)
    reading = f"images a second, {gpus[0].name}"  # what the readers must decode to keep up
    return _table(("stage", "epochs", "steps", "TFLOP a step", reading, *names), rows)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = tuple(head)
    marks = ("---", *("---:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


if __name__ == "__main__":
    raise SystemExit(main())
