"""Two heads against one: what the SAM head adds to text-prompted semantic segmentation.

The paper's composition gains 5.4 points of mIoU on Pascal VOC (section 4.4). This command
reports the gain or loss per class of a set, and draws the photographs that changed most.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from samclip_core.io.image import decode
from samclip_core.model import SamClip
from training.claims import results
from training.claims.sheet import draw_labels
from training.data.folder import photograph_sets
from training.evaluation.layouts import LabelledSet
from training.evaluation.measures import class_rows, confusion, mean_iou
from training.evaluation.semantic import own_set, readable
from training.evaluation.suite import Options, progress

COLUMNS = ("photograph", "truth", "one head", "two heads")


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
    """Confusion C×C of each procedure over a set, and the photographs that changed most."""

    labels: list[str]
    one_CC: NDArray[np.int64]
    two_CC: NDArray[np.int64]
    changed: list[Changed] = field(default_factory=list)


def compare(model: SamClip, data: LabelledSet, shown: int) -> Comparison:
    """Segment each photograph of a set by one head and by both, from one encoding."""
    values, labels = list(data.classes), [readable(name) for name in data.classes.values()]
    nothing_CC = np.zeros((len(values), len(values)), np.int64)
    found = Comparison(labels, nothing_CC, nothing_CC)
    for picture in progress(data.pictures, f"two heads {data.name}"):
        truth_HW, encoded = picture.labels(), picture.read()
        features = model.encode(encoded)
        one_HW, two_HW = (
            model.segment_text(features, labels, refine=refine).label_map_HW
            for refine in (False, True)
        )
        found.one_CC = found.one_CC + confusion(truth_HW, one_HW, values)
        found.two_CC = found.two_CC + confusion(truth_HW, two_HW, values)
        row_HW = class_rows(truth_HW, values)
        right = (two_HW == row_HW).astype(int) - (one_HW == row_HW)
        gain = float(right[row_HW >= 0].sum() / max(1, (row_HW >= 0).sum()))
        maps_3HW = np.stack([row_HW, one_HW, two_HW]).astype(np.int16)
        candidate = Changed(gain, decode(encoded, model.limits), maps_3HW)
        found.changed = nlargest(shown, [*found.changed, candidate], lambda c: abs(c.gain))
    return found


def class_iou(confusion_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return IoU per class; NaN for a class that is neither present nor predicted."""
    hit_C = np.diag(confusion_CC)
    union_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - hit_C
    return np.divide(hit_C, union_C, out=np.full(len(hit_C), np.nan), where=union_C > 0)


def report(name: str, found: Comparison) -> str:
    """Format both figures, and a table of the classes that occur, the largest gain first."""
    one, two = mean_iou(found.one_CC), mean_iou(found.two_CC)
    one_C, two_C = class_iou(found.one_CC), class_iou(found.two_CC)
    pixels_C = found.one_CC.sum(axis=1)
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
    classes = results.table(["class", "pixels", "one head", "two heads", "difference"], rows)
    return (
        f"{name}: mIoU {one:.2%} with one head, {two:.2%} with two: {100 * (two - one):+.2f} "
        f"points\n\n{classes}"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Compare one head with two on a semantic set: mIoU, IoU per class, largest changes."""
    parser = argparse.ArgumentParser(prog="training.claims.two_heads", description=main.__doc__)
    parser.add_argument("--checkpoint", default="edge", help="name or directory")
    parser.add_argument("--set", default="coco_multi", help="coco_multi, labelmefacade or camvid")
    parser.add_argument("--split", default="val", help="val, or train to choose procedures")
    parser.add_argument("--root", help="folder of the photograph sets (SAMCLIP_DATA)")
    parser.add_argument("--limit", type=int, help="photographs, spread evenly over the set")
    parser.add_argument("--shown", type=int, default=8, help="photographs on the sheet")
    parser.add_argument("--out", type=Path, default=Path("out/claims"))
    args = parser.parse_args(argv)
    root = Path(photograph_sets(parser, "--root", args.root))
    model = SamClip.load(args.checkpoint, engine="torch")
    data = own_set(Options(root=root, limit=args.limit), args.set, args.split)
    found = compare(model, data, args.shown)
    name = f"two_heads_{args.set}_{args.split}"
    figures = {
        "digest": model.digest,
        f"{args.set}_semantic_miou": mean_iou(found.one_CC),
        f"{args.set}_semantic_two_heads_miou": mean_iou(found.two_CC),
    }
    results.write(args.out, name, figures, report(name, found), draw(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
