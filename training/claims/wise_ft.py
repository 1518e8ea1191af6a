"""Wise-FT (paper, appendix D): does any mixture of SAM and a CLIP-only student match the merge?

A student trained on CLIP alone forgets how to segment. Each point of the curve mixes its weights
with those of the SAM teacher and is evaluated on masks from boxes and on names. Mixtures are chosen
on one part of the validation sets and reported on the other.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.model import SamClip
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build, load_net
from samclip_core.nn.text_encoder import load_text_encoder
from training.claims import claim_parser, options_of
from training.data.annotations import decoded, regions
from training.evaluation.instances import box_overlaps
from training.evaluation.parallel import progress
from training.evaluation.recognition import classify_own_sets
from training.evaluation.suite import Options, own_samples
from training.results.tables import table
from training.suites import Axis

SHARES = tuple(tenth / 10 for tenth in range(11))
Curve = dict[str, tuple[float, ...]]
"""Two figures in [0, 1], of masks and names, by the share of the student, and of the "merge"."""
SAM_HELP = "SAM teacher: checkpoint directory, or sam-teacher.best.pt of a run"


def interpolate(a: SamClipNet, b: SamClipNet, share: float) -> SamClipNet:
    """Return ``(1 - share) · a + share · b`` per weight; neither network changes.

    Integer buffers and tensors that only ``b`` has (a SAM teacher has no CLIP head) are copied from
    ``b``. Raises KeyError if ``a`` has a tensor that ``b`` lacks.
    """
    mixed = copy.deepcopy(b)
    tensors = mixed.state_dict()
    with torch.no_grad():
        for key, value in a.state_dict().items():
            if value.is_floating_point():
                tensors[key].lerp_(value, 1 - share)
    return mixed


def load_sam(path: Path, like: Path) -> SamClipNet:
    """Load the SAM teacher from a checkpoint directory or the best weights of a training stage.

    ``like`` is a checkpoint with the architecture of the weights.
    """
    make = partial(build, checkpoint.read_config(path if path.is_dir() else like), SAM_PARTS)
    if path.is_dir():
        return checkpoint.load_weights(path, make, SAM_PARTS)
    net = make()
    state = read_state(path)
    net.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in SAM_PARTS})
    return net


def measure(model: SamClip, options: Options, axes: Sequence[Axis] = ()) -> tuple[float, ...]:
    """Return the figures of the axes; by default box mIoU on coco_multi and top-1 on imagen200.

    Raises ValueError if a suite has no such figure.
    """
    if axes:
        return tuple(axis.measure(model, options) for axis in axes)
    overlaps = []
    for sample in progress(own_samples(options, "coco_multi", usable=regions), "boxes"):
        overlaps += box_overlaps(model, model.encode(sample.encoded), decoded(regions(sample)))
    named = classify_own_sets(model, options, ["imagen200"])
    return float(np.mean(overlaps)), named["imagen200_top1"]


def curve(
    sam: Path, student: Path, merged: Path, options: Options, axes: Sequence[Axis] = ()
) -> Curve:
    """Measure the points of the curve and the merge."""
    text_encoder = load_text_encoder(student)
    kd, teacher = load_net(student), load_sam(sam, student)
    points: Curve = {}
    for share in SHARES:
        net = interpolate(teacher, kd, share).eval().requires_grad_(False)
        model = SamClip(student, TorchEngine(net, text_encoder))
        points[f"{share:.1f}"] = measure(model, options, axes)
    return points | {"merge": measure(SamClip.load(merged, engine="torch"), options, axes)}


def better(points: Curve) -> list[str]:
    """Return the shares that beat the merge on both axes."""
    box_miou, top1 = points["merge"]
    return [share for share, point in points.items() if point[0] > box_miou and point[1] > top1]


def verdict(selected: Curve, reported: Curve) -> str:
    """State which shares beat the merge where they were chosen, and which also on the rest."""
    chosen, kept = better(selected), better(reported)
    if not chosen:
        return "No point of the curve beats the merge on both axes where shares are chosen."
    also = ", ".join(share for share in chosen if share in kept)
    return (
        f"Shares chosen because they beat the merge on both axes: {', '.join(chosen)}. On the "
        f"other photographs, of these beat it: {also or 'none'}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the Wise-FT curve between SAM and a CLIP-only student, and the merge."""
    parser = claim_parser("wise_ft", main.__doc__)
    parser.add_argument("--sam", type=Path, required=True, help=SAM_HELP)
    parser.add_argument("--student", default="runs/edge-naive-kd/checkpoint", help="CLIP-only")
    parser.add_argument("--merge", default="edge", help="the merged checkpoint")
    parser.add_argument(
        "--axes",
        nargs=2,
        type=Axis.read,
        default=(),
        metavar="SUITE/FIGURE=FOLDER",
        help="figures of public sets, as in coco-boxes/ap=COCO imagenet/paper_top1=IMAGENET, on "
        "which shares are chosen, too; without them, those of our own sets in --root",
    )
    args = parser.parse_args(argv)
    if args.axes:
        args.root = args.root or str(args.axes[0].root)
    options = options_of(parser, args)
    directories = args.sam, checkpoint.resolve(args.student), checkpoint.resolve(args.merge)
    reported = curve(*directories, replace(options, part="report"), args.axes)
    selected = reported if args.axes else curve(*directories, replace(options, part="select"))
    rows = [[name, *(f"{figure:.1%}" for figure in point)] for name, point in reported.items()]
    axes = [f"{axis.suite} {axis.figure}" for axis in args.axes]
    head = ["share of the student", *(axes or ["coco_multi box mIoU", "imagen200 top-1"])]
    print(f"{table(head, rows)}\n{verdict(selected, reported)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
