"""Retention: how much of what each teacher knows is left in the merge (paper, table 1).

Both teachers stand side by side as one model, the CLIP teacher for names and the SAM teacher for
masks, and answer the same questions about the same photographs as the merge does.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import EncodedBatch, SamClipNet
from samclip_core.nn.text_encoder import load_text_encoder
from training.claims import results
from training.claims.wise_ft import load_sam
from training.distillation.teachers import ClipTeacher, class_embeddings
from training.distillation.text_tower import imagenet_names
from training.evaluation.evaluate import OWN
from training.evaluation.suite import Metrics, Options


class TeacherPair(SamClipNet):
    """Two encoders: masks are the SAM teacher's, names the CLIP teacher's."""

    def __init__(self, sam: SamClipNet, clip: ClipTeacher) -> None:
        super().__init__(dict(sam.named_children()))
        self.clip_teacher = clip

    def encode(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncodedBatch:
        sam_BDhw, _ = self.image_encoder(pixels_B3SS, sizes_B2)
        return EncodedBatch(sam_BDhw, *self.clip_teacher(pixels_B3SS, sizes_B2))


def teachers(sam: Path, like: Path, data: Path, version: int) -> SamClip:
    """The teachers of the edge merge at ``like`` as one model; ``sam`` as for ``load_sam``.

    ``version`` is the EfficientNet-Lite that the CLIP teacher is.
    """
    text_encoder = load_text_encoder(like)
    clip = ClipTeacher(class_embeddings(text_encoder, imagenet_names(data)), version)
    net = TeacherPair(load_sam(sam, like), clip).eval().requires_grad_(False)
    return SamClip(like, TorchEngine(net, text_encoder))


def table(taught: Mapping[str, float], merged: Mapping[str, float]) -> str:
    """Each figure of both teachers and of the merge, and what share of it is kept."""
    rows = [
        [
            name.replace("_", " "),
            f"{taught[name]:.1%}",
            f"{merged[name]:.1%}",
            f"{merged[name] / taught[name]:.1%}" if taught[name] else "",
        ]
        for name in taught
    ]
    return results.table(["figure", "teacher", "merge", "kept"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both teachers and the merge alike: every figure, and how much of it is kept."""
    parser = argparse.ArgumentParser(prog="training.claims.retention", description=main.__doc__)
    parser.add_argument(
        "--sam", type=Path, required=True, help="SAM teacher: checkpoint directory or state file"
    )
    parser.add_argument("--clip", type=int, default=2, help="CLIP teacher: EfficientNet-Lite …")
    parser.add_argument("--merge", default="edge", help="the merged checkpoint")
    parser.add_argument(
        "--card", action="store_true", help="take the merge's figures from its card (samclip eval)"
    )
    parser.add_argument("--suites", nargs="+", choices=OWN, default=list(OWN))
    parser.add_argument("--root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, help="photographs of each set")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/claims"))
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    options = Options(root=given.root, limit=given.limit)
    merge = checkpoint.resolve(given.merge)
    pair = teachers(given.sam, merge, given.root, given.clip)
    taught = _measured(pair, given.suites, options)
    if given.card:
        lineage = json.loads(checkpoint.read_file(merge, checkpoint.LINEAGE))
        merged = {name: lineage["metrics"][name] for name in taught}
    else:
        merged = _measured(SamClip.load(merge, engine="torch"), given.suites, options)
    found = {"digest": checkpoint.digest(merge), "teachers": taught, "merge": merged}
    results.write(given.out, "retention", found, table(taught, merged), None)
    return 0


def _measured(model: SamClip, suites: Sequence[str], options: Options) -> Metrics:
    metrics: Metrics = {}
    for suite in suites:
        metrics |= OWN[suite](model, options)
    return metrics


if __name__ == "__main__":
    raise SystemExit(main())
