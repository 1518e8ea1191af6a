"""The card of a run: losses, learning rates and sample masks, as pictures and a table."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.io.image import ImageLimits, decode
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.types import Prompt
from training.data.annotations import decoded, regions
from training.data.sources import open_source
from training.journal import KINDS, LOSSES
from training.recipes import STAGES
from training.results.plots import Curve, curves
from training.results.tables import table
from training.schedule import Schedule, rate_at

SAMPLES, REGIONS, SIDE = 6, 8, 240
POINTS = 200  # of a curve, each the mean of its steps


def main(argv: Sequence[str] | None = None) -> int:
    """Write run.md, run.svg and, with --set, masks.jpg beside the checkpoint of a run."""
    parser = argparse.ArgumentParser(prog="training.results.run", description=main.__doc__)
    parser.add_argument("run", type=Path, help="folder of the run (--out of samclip train)")
    parser.add_argument("--set", help="set with outlines, of which a few pictures get their masks")
    args = parser.parse_args(argv)
    try:
        print(write(args.run, args.set), end="")
    except (SamClipError, OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def write(run: Path, outlined: str | None) -> str:
    """Write the card of a run; return its table."""
    directory, states = run / "checkpoint", Folder(run / "states")
    recipe = checkpoint.read_lineage(checkpoint.resolve(str(directory)))["recipe"]
    panels = {}
    for stage in [name for name in STAGES if states.exists(f"{name}.{LOSSES}.tsv")]:
        for kind in KINDS:
            if states.exists(f"{stage}.{kind}.tsv"):
                panels[f"{stage}, {kind}"] = _table(states, f"{stage}.{kind}.tsv")
        schedule = Schedule(**recipe[stage.replace("-", "_")])
        steps = range(len(next(iter(panels[f"{stage}, {LOSSES}"].values()))))
        rates = [(float(step), schedule.rate * rate_at(step, schedule)) for step in steps]
        panels[f"{stage}, learning rate"] = {"rate": rates}
    text = _summary(panels)
    (run / "run.svg").write_text(curves({t: _thinned(lines) for t, lines in panels.items()}))
    pictures = "![curves](run.svg)\n"
    if outlined:
        model = SamClip.load(str(directory), engine="torch")
        _, encoded = cv2.imencode(".jpg", samples(model, outlined))
        (run / "masks.jpg").write_bytes(encoded.tobytes())
        pictures += "![photographs, and the masks from their outlines' boxes](masks.jpg)\n"
    (run / "run.md").write_text(f"# {recipe['name']}\n\n{text}\n{pictures}")
    return text


def _summary(panels: Mapping[str, Mapping[str, Curve]]) -> str:
    rows = []
    for title, lines in panels.items():
        for name, line in lines.items():
            values = [value for _, value in line]
            shown = values[0], values[-1], min(values), max(values)
            rows.append([title, name, f"{len(line)}", *(f"{value:.4g}" for value in shown)])
    return table(["stage", "figure", "points", "first", "last", "lowest", "highest"], rows)


def _table(states: Folder, name: str) -> dict[str, Curve]:
    """Return the columns of a table of the journal, by step."""
    head, *rows = [line.split("\t") for line in states.text(name).splitlines()]
    return {
        figure: [(float(row[0]), float(row[column])) for row in rows]
        for column, figure in enumerate(head[1:], 1)
    }


def _thinned(lines: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return curves of at most POINTS means."""
    thinned: dict[str, Curve] = {}
    for name, line in lines.items():
        pieces = np.array_split(np.array(line), min(POINTS, len(line)))
        thinned[name] = [(float(x), float(y)) for x, y in (p.mean(axis=0) for p in pieces)]
    return thinned


def samples(model: SamClip, outlined: str) -> NDArray[np.uint8]:
    """Draw outlined photographs in a row, and below them the masks from their regions' boxes."""
    source, columns = open_source(outlined), []
    for number in range(min(SAMPLES, len(source))):
        image_HW3 = decode(source[number].encoded, ImageLimits())[:, :, ::-1].copy()
        truths = decoded(regions(source[number])[:REGIONS])
        prompts = [Prompt(box=mask_box(truth)) for truth in truths]
        answers = model.segment(source[number].encoded, prompts, multimask=False) if prompts else []
        masked_HW3 = image_HW3.copy()
        for place, answer in enumerate(answers):
            colour = np.array([(97 * place) % 256, (181 * place + 90) % 256, 255 - 31 * place])
            masked_HW3[answer.masks_MHW[0]] = (masked_HW3[answer.masks_MHW[0]] + colour) / 2
        columns.append(
            np.vstack([cv2.resize(part, (SIDE, SIDE)) for part in (image_HW3, masked_HW3)])
        )
    return np.hstack(columns)


if __name__ == "__main__":
    raise SystemExit(main())
