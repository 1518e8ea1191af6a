"""Retention: the share of each teacher's figures that the merge keeps (paper, table 1).

Both teachers form one model, the CLIP teacher for names and the SAM teacher for masks, which is
evaluated on the same photographs as the merge: those of the edge merge, or a pair of official
models (``samclip pull``), the teachers of any other recipe.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import EncodedBatch, SamClipNet
from samclip_core.nn.text_encoder import load_text_encoder
from training.claims import claim_parser, options_of
from training.claims.wise_ft import SAM_HELP, load_sam
from training.data.annotations import imagenet_names
from training.distillation.teachers import ClipTeacher, class_embeddings
from training.evaluation.suite import Metrics, Options, add_part
from training.results.tables import table
from training.suites import OWN, Axis


class TeacherPair(SamClipNet):
    """Two encoders: the SAM teacher's for masks, the CLIP teacher's for names."""

    def __init__(self, sam: SamClipNet, clip: ClipTeacher) -> None:
        super().__init__(dict(sam.named_children()))
        self.clip_teacher = clip

    def encode(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncodedBatch:
        sam_BDhw = self.image_encoder(pixels_B3SS, sizes_B2).sam_BDhw
        return EncodedBatch(sam_BDhw, *self.clip_teacher(pixels_B3SS, sizes_B2))


def teachers(sam: Path, like: Path, data: Path, version: int) -> SamClip:
    """Load the teachers of the edge merge at ``like`` as one model; ``sam`` as for ``load_sam``.

    ``version`` is that of the CLIP teacher's EfficientNet-Lite.
    """
    text_encoder = load_text_encoder(like)
    clip = ClipTeacher(class_embeddings(text_encoder, imagenet_names(data)), version)
    net = TeacherPair(load_sam(sam, like), clip).eval().requires_grad_(False)
    return SamClip(like, TorchEngine(net, text_encoder))


def kept(taught: Mapping[str, float], merged: Mapping[str, float]) -> str:
    """Tabulate each figure of the teachers and the merge, and the share that is kept."""
    rows = [
        [
            name.replace("_", " "),
            f"{value:.1%}",
            f"{merged[name]:.1%}",
            f"{merged[name] / value:.1%}" if value else "",
        ]
        for name, value in taught.items()
        if name in merged and not isinstance(value, int)  # counts of classes and photographs
    ]
    return table(["figure", "teacher", "merge", "kept"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the teachers and the merge; print each figure and the share that is kept."""
    parser = claim_parser("retention", main.__doc__)
    add = parser.add_argument
    teaching = parser.add_mutually_exclusive_group(required=True)
    teaching.add_argument("--sam", type=Path, help=f"edge: {SAM_HELP}")
    teaching.add_argument("--pair", help="other recipes: name or directory of the teachers' pair")
    add("--clip", type=int, default=2, help="version of the CLIP teacher's EfficientNet-Lite")
    add("--merge", default="edge", help="the merged checkpoint")
    add("--card", action="store_true", help="take the merge's figures from its card (samclip eval)")
    add("--suites", nargs="+", choices=OWN, default=list(OWN))
    axes = "figures of public sets, as in coco-boxes/ap=COCO, instead of --suites"
    add("--axes", nargs="+", type=Axis.read, default=(), metavar="SUITE/FIGURE=FOLDER", help=axes)
    add("--threads", type=int, default=torch.get_num_threads())
    add_part(parser)
    args = parser.parse_args(argv)
    args.root = args.root or (str(args.axes[0].root) if args.axes else None)
    options = options_of(parser, args)
    torch.set_num_threads(args.threads)
    merge = checkpoint.resolve(args.merge)
    lineage = checkpoint.read_lineage(merge)
    if args.card:
        options = replace(options, part=lineage.get("part", "all"))  # the card of edge is of all
    if args.pair:
        pair = SamClip.load(args.pair, engine="torch")
    else:
        pair = teachers(args.sam, merge, options.root, args.clip)
    taught = _measured(pair, args, options)
    merged = lineage["metrics"] if args.card else None
    merged = merged or _measured(SamClip.load(merge, engine="torch"), args, options)
    print(f"part {options.part}\n\n{kept(taught, merged)}", end="")
    return 0


def _measured(model: SamClip, args: argparse.Namespace, options: Options) -> Metrics:
    metrics = {f"{axis.suite} {axis.figure}": axis.measure(model, options) for axis in args.axes}
    for suite in args.suites if not args.axes else ():
        metrics |= OWN[suite].task(model, options)
    return metrics


if __name__ == "__main__":
    raise SystemExit(main())
