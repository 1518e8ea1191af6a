"""Write the report of a run: loss curves, sample predictions and the recipe, as report.md."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samclip_core.io.folder import Folder
from samclip_core.io.image import ImageLimits, decode
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from training.data.annotations import decoded, regions
from training.data.sources import open_source
from training.distillation.stages import NAMES
from training.journal import LOSSES, VALIDATION
from training.loop import GRADIENT_NORM
from training.recipes import Run

SAMPLES, REGIONS = 6, 8

REPORT = """# {name}

Checkpoint `{checkpoint}`, digest `{digest}`.

![Loss curves](curves.png)

![Human outlines, and the masks predicted from their boxes](samples.png)

## Recipe

| field | value |
|---|---|
{recipe}
"""


def write(run: Run, directory: Path) -> None:
    """Write report.md, curves.png and samples.png beside the checkpoint at ``directory``."""
    folder, states = directory.parent, Folder(run.folder)
    curves(states, folder / "curves.png")
    model = SamClip.load(str(directory), engine="torch")
    samples(run, model, folder / "samples.png")
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in asdict(run.recipe).items())
    (folder / "report.md").write_text(
        REPORT.format(
            name=run.recipe.name,
            checkpoint=f"{states.parent.url}/{directory.name}",
            digest=model.digest,
            recipe=rows,
        )
    )


def curves(states: Folder, target: Path) -> None:
    """Plot the losses of each stage (moving mean over 2% of its steps) and its validation loss."""
    done = [stage for stage in NAMES if states.exists(f"{stage}.{LOSSES}.tsv")]
    figure = Figure(figsize=(5 * len(done), 3.5), layout="tight")
    axes = figure.subplots(1, len(done), squeeze=False)
    for axis, stage in zip(axes[0], done, strict=True):
        names, values = _table(states, f"{stage}.{LOSSES}.tsv")
        width = max(1, len(values) // 50)
        for name, column in zip(names[1:], values.T[1:], strict=True):
            if name == GRADIENT_NORM:
                continue  # not a loss
            smooth = np.convolve(column, np.ones(width) / width, mode="valid")
            axis.plot(values[width - 1 :, 0], smooth, label=name)
        if states.exists(f"{stage}.{VALIDATION}.tsv"):
            _, values = _table(states, f"{stage}.{VALIDATION}.tsv")
            axis.plot(values[:, 0], values[:, 1], "k.--", label="validation")
        axis.set(title=stage, xlabel="step")
        axis.legend()
    figure.savefig(target, dpi=110)


def _table(states: Folder, name: str) -> tuple[list[str], NDArray[np.float64]]:
    head, *rows = states.text(name).splitlines()
    return head.split("\t"), np.array([[float(v) for v in row.split("\t")] for row in rows])


def samples(run: Run, model: SamClip, target: Path) -> None:
    """Draw a few outlined photographs with the masks predicted from their regions' boxes."""
    source = open_source(f"{run.data}/{run.recipe.region_sets[0][0]}")
    shown = [source[i] for i in range(min(SAMPLES, len(source)))]
    figure = Figure(figsize=(3 * len(shown), 6), layout="tight")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for (plain, masked), sample in zip(axes.T, shown, strict=True):
        image_HW3 = decode(sample.encoded, ImageLimits())
        truths = decoded(regions(sample)[:REGIONS])
        prompts = [Prompt(box=mask_box(truth)) for truth in truths]
        answers = model.segment(sample.encoded, prompts, multimask=False) if prompts else []
        plain.imshow(image_HW3)
        masked.imshow(image_HW3)
        for truth in truths:
            plain.contour(truth, [0.5], colors="w", linewidths=1)
        for answer in answers:
            masked.contourf(answer.masks_MHW[0], [0.5, 1.5], alpha=0.5)
        plain.axis("off")
        masked.axis("off")
    figure.savefig(target, dpi=80)
