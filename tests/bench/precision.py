"""What a lower precision costs: ``python -m tests.bench.precision``.

The encoder in float32 is the reference. Beside it stand the encoder in bfloat16, and what the cache
gives back in its two forms. Embeddings are compared by their cosine, answers by the figures of
``samclip eval`` on the validation parts of the photograph sets: masks and top-1.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samclip_core.model import Dtype, Prepared, SamClip
from samclip_core.types import ImageFeatures
from services import wire
from services.cache.entry import Entry, StoredAs
from training.evaluation import classification, instances
from training.evaluation.suite import Metrics, Options, own_samples

VARIANTS: dict[str, tuple[Dtype, StoredAs | None]] = {
    "float32": ("float32", None),
    "float32, kept as float16": ("float32", "float16"),
    "float32, kept as int8": ("float32", "int8"),
    "bfloat16": ("bfloat16", None),
    "bfloat16, kept as float16": ("bfloat16", "float16"),
    "bfloat16, kept as int8": ("bfloat16", "int8"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.precision", description=__doc__)
    parser.add_argument("--checkpoint", default="edge", help="name or directory (edge)")
    parser.add_argument("--root", type=Path, default=Path("../shared/data"), help="photograph sets")
    parser.add_argument("--limit", type=int, help="pictures of each set (all)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/precision.json"))
    args = parser.parse_args(argv)
    options = Options(root=args.root, limit=args.limit)
    report = {name: _measure(args.checkpoint, *kinds, options) for name, kinds in VARIANTS.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    return 0


def kept(features: ImageFeatures, stored_as: StoredAs) -> ImageFeatures:
    """What the cache gives back of them."""
    arrays = {
        field: Entry.of(getattr(features, field), features.geometry, stored_as).array
        for field in wire.FIELDS.values()
    }
    return ImageFeatures(features.geometry, **arrays)


def _measure(
    checkpoint: str, dtype: Dtype, stored_as: StoredAs | None, options: Options
) -> Metrics:
    reference = SamClip.load(checkpoint)
    model: Any = SamClip.load(checkpoint, dtype=dtype)
    if stored_as:
        model.encode_batch = _through_cache(model.encode_batch, stored_as)
    figures = instances.own_sets(model, options) | classification.own_sets(model, options)
    pictures = [sample.encoded for sample in own_samples(options, "coco_multi")][:20]
    for field in wire.FIELDS.values():
        cosines = [
            _cosine(
                getattr(reference.encode(picture), field), getattr(model.encode(picture), field)
            )
            for picture in pictures
        ]
        figures[f"{field}_cosine"] = min(cosines)
    return figures


def _through_cache(
    encode_batch: Callable[[Sequence[Prepared]], list[ImageFeatures]], stored_as: StoredAs
) -> Callable[[Sequence[Prepared]], list[ImageFeatures]]:
    return lambda batch: [kept(features, stored_as) for features in encode_batch(batch)]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def table(report: dict[str, Metrics]) -> str:
    """A row a figure, a column a precision: the reference's own, and the difference to it."""
    names = list(report)
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    reference = report[names[0]]
    for figure, value in reference.items():
        others = [report[name][figure] for name in names[1:]]
        if figure.endswith("_cosine"):
            cells = [f"{other:.5f}" for other in (value, *others)]
        else:
            cells = [f"{100 * value:.2f} %", *(f"{100 * (o - value):+.2f}" for o in others)]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
