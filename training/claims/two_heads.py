"""Two heads against one: what the SAM head adds to text-prompted semantic segmentation.

The paper's composition gains 5.4 points of mIoU on Pascal VOC (section 4.4). This command
reports the gain or loss per class of a set, and draws the photographs that changed most.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samclip_core.io.image import decode
from samclip_core.model import SamClip
from training.claims.command import add_checkpoint, add_set, claim_parser, options_of, write
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import class_iou, class_pixels, class_rows, semantic_figures
from training.evaluation.semantic import own_set
from training.evaluation.suite import Metrics, progress
from training.results.tables import figure_table, table

COLUMNS = ("photograph", "truth", "one head", "two heads")
NAMED = 4  # labels listed under a map, those of the largest areas
FADED = 0.35  # opacity of the photograph


@dataclass(frozen=True, eq=False)
class Changed:
    """One photograph: class indices of truth, one head and two heads, -1 for none.

    ``gain``: the change in accuracy on labelled pixels from one head to two.
    """

    gain: float
    image_HW3: NDArray[np.uint8]
    maps_3HW: NDArray[np.integer]


@dataclass
class Comparison:
    """Pixel counts 3×C of each photograph by each procedure, and the largest changes."""

    labels: list[str]
    one_N3C: list[NDArray[np.int64]] = field(default_factory=list)
    two_N3C: list[NDArray[np.int64]] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)


def compare(model: SamClip, data: LabelledSet, shown: int) -> Comparison:
    """Segment each photograph of a set by one head and by both, from one encoding."""
    values, labels = list(data.classes), list(data.classes.values())
    found = Comparison(labels)
    for picture in progress(data.pictures, f"two heads {data.name}"):
        truth_HW, encoded = picture.labels(), picture.read()
        features = model.encode(encoded)
        one_HW, two_HW = (
            model.segment_text(features, labels, refine=refine).label_map_HW
            for refine in (False, True)
        )
        found.one_N3C.append(class_pixels(truth_HW, one_HW, values))
        found.two_N3C.append(class_pixels(truth_HW, two_HW, values))
        row_HW = class_rows(truth_HW, values)
        right = (two_HW == row_HW).astype(int) - (one_HW == row_HW)
        gain = float(right[row_HW >= 0].sum() / max(1, (row_HW >= 0).sum()))
        maps_3HW = np.stack([row_HW, one_HW, two_HW]).astype(np.int16)
        candidate = Changed(gain, decode(encoded, model.limits), maps_3HW)
        found.changed = nlargest(shown, [*found.changed, candidate], lambda c: abs(c.gain))
    return found


def figures(source: str, found: Comparison) -> Metrics:
    """Return the semantic figures of both procedures, named as by ``samclip eval``."""
    return semantic_figures(f"{source}_semantic", found.one_N3C) | semantic_figures(
        f"{source}_semantic_two_heads", found.two_N3C
    )


def report(source: str, found: Comparison) -> str:
    """Format all figures, and a table of the classes that occur, the largest gain first."""
    measured = figures(source, found)
    one, two = (measured[f"{source}_semantic{head}_miou"] for head in ("", "_two_heads"))
    one_3C, two_3C = (np.sum(counts, axis=0) for counts in (found.one_N3C, found.two_N3C))
    one_C, two_C, pixels_C = class_iou(one_3C), class_iou(two_3C), one_3C[1]
    order = [c for c in np.argsort(one_C - two_C, kind="stable") if pixels_C[c]]
    rows = [
        [
            found.labels[c],
            f"{pixels_C[c] / pixels_C.sum():.1%}",
            f"{one_C[c]:.1%}",
            f"{two_C[c]:.1%}",
            f"{100 * (two_C[c] - one_C[c]):+.1f}",
        ]
        for c in order
    ]
    classes = table(["class", "pixels", "one head", "two heads", "difference"], rows)
    return (
        f"{source}: mIoU {one:.2%} with one head, {two:.2%} with two: {100 * (two - one):+.2f} "
        f"points\n\n{figure_table(measured)}\n{classes}"
    )


def draw(found: Comparison) -> Figure | None:
    """Draw the photographs that changed most, one per row; None if there are none."""
    if not found.changed:
        return None
    count = len(found.changed)
    figure = Figure(figsize=(14, 3.6 * count), layout="constrained")
    rows = figure.subplots(count, len(COLUMNS), squeeze=False)
    for axes, changed in zip(rows, found.changed, strict=True):
        axes[0].imshow(changed.image_HW3)
        axes[0].set_xlabel(f"{100 * changed.gain:+.1f} points of accuracy")
        for cell, label_map_HW in zip(axes[1:], changed.maps_3HW, strict=True):
            draw_labels(cell, changed.image_HW3, label_map_HW, found.labels)
        for cell, title in zip(axes, COLUMNS, strict=True):
            cell.set(title=title, xticks=[], yticks=[])
    return figure


def colours(count: int) -> NDArray[np.float64]:
    """Return ``count`` RGB colours in [0, 1], one per row; neighbours have distant hues."""
    golden = (5**0.5 - 1) / 2
    hues = (np.arange(count) * golden) % 1
    return np.array([colorsys.hsv_to_rgb(h, 0.55 + 0.4 * (i % 2), 0.9) for i, h in enumerate(hues)])


def draw_labels(
    axes: Axes, image_HW3: NDArray[np.uint8], label_map_HW: NDArray[np.integer], labels: list[str]
) -> None:
    """Draw a map of indices into ``labels`` (-1: none) and list its largest areas below."""
    palette_L3 = np.vstack([colours(len(labels)), np.zeros(3)])  # the last row is -1's
    shown_HW3 = (1 - FADED) * palette_L3[label_map_HW] + FADED * image_HW3 / 255
    axes.imshow(shown_HW3)
    found, area = np.unique(label_map_HW[label_map_HW >= 0], return_counts=True)
    for line, index in enumerate(found[np.argsort(-area)][:NAMED]):
        axes.text(
            0.5,
            -0.03 - 0.08 * line,
            labels[index],
            color=0.75 * palette_L3[index],
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=8,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare one head with two on a semantic set: mIoU, IoU per class, largest changes."""
    parser = claim_parser("two_heads", main.__doc__)
    add_checkpoint(parser)
    add_set(parser)
    parser.add_argument("--shown", type=int, default=8, help="photographs on the sheet")
    args = parser.parse_args(argv)
    options = options_of(parser, args)
    model = SamClip.load(args.checkpoint, engine="torch")
    found = compare(model, own_set(options, args.set, args.split), args.shown)
    name = f"two_heads_{args.set}_{args.split}"
    measured = {"digest": model.digest, "part": args.part} | figures(args.set, found)
    write(args.out, name, measured, report(args.set, found), draw(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
