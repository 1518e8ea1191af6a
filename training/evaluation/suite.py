"""The inputs and outputs of every evaluation task, and pictures that are encoded in batches."""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar, get_args

from samclip_core.encoder import Prepared
from samclip_core.io.image import ImageLimits, whole_size
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import read_shards
from training.data.sample import Sample, reading
from training.data.sources import open_source
from training.evaluation import parallel

T = TypeVar("T")
R = TypeVar("R")

Metrics = dict[str, float]
"""Named figures in [0, 1], higher is better; an int is a count, noc a mean number of clicks, and
words_masks_per_name one of masks."""
Protocol = Literal["served", "paper"]
"""How a map is made by the CLIP head: as it is served, or as in the paper's table 2."""
Prompts = Literal["own", "paper"]
"""Of Head_SAM after the CLIP head's map: ours alone, or also those of the paper."""
FeatureMap = Literal["tokens", "sam", "clip"]
Head = Literal["linear", "deeplab", "psp"]
Part = Literal["all", "select", "report"]
"""A third of each of our own validation sets is for choosing settings, the rest for reporting."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one evaluation run, which ``samclip eval --help`` describes.

    Without ``protocol``, both count.
    """

    root: Path
    limit: int | None = None
    protocol: Protocol | None = None
    refine: bool = False
    prompts: Prompts = "own"
    detections: Path | None = None
    features: FeatureMap = "tokens"
    head: Head = "linear"
    seed: int = 0
    part: Part = "all"
    epochs: int | None = None


Task = Callable[[SamClip, Options], Metrics]
Frame = Callable[[SamClip, T], Prepared]
Score = Callable[[SamClip, T, ImageFeatures], R]
ScoreBatch = Callable[[SamClip, Sequence[tuple[T, ImageFeatures]]], Sequence[R]]
AT_ONCE = 8
"""Pictures per batch on a GPU; on a CPU, batches are no faster and take more memory."""


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add ``--part``, which chooses the part of our own validation sets."""
    parser.add_argument(
        "--part",
        choices=get_args(Part),
        default="report",
        help="part of our own validation sets: select, a third, to choose settings; report, the "
        "rest, for figures to publish; all, for models that were chosen on all (default: "
        "%(default)s)",
    )


def limited(items: Sequence[T], limit: int | None) -> list[T]:
    """Return ``limit`` items, spread evenly, or all if there are fewer."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def check_there(root: Path, reads: Iterable[str]) -> None:
    """Check that our own sets, and the files with names of classes (``.json``), are there.

    Raises FileNotFoundError, which names all that are missing.
    """
    missing = []
    for name in dict.fromkeys(reads):
        if name.endswith(".json"):
            missing += [] if (root / name).is_file() else [f"no file {root / name}"]
            continue
        try:
            open_source(str(root / name), "val")
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def own_samples(
    options: Options,
    source: str,
    split: str = "val",
    usable: Callable[[Sample], object] = lambda _: True,
) -> list[Sample]:
    """Return the usable samples of a split of one of our own sets, up to the limit.

    Of the ``val`` split, only those of the requested part. Raises ValueError if there are none,
    and BadSample for a photograph that is torn.
    """
    samples = [sample for sample in read_shards(options.root, source, split) if usable(sample)]
    if split == "val" and options.part != "all":
        samples = [sample for sample in samples if part_of(sample.key) == options.part]
    if not samples:
        raise ValueError(
            f"{options.root / source} has no usable {split} photographs in part {options.part}"
        )
    chosen = limited(samples, options.limit)
    for sample in chosen:
        with reading(sample.source, sample.key, "its photograph is broken"):
            whole_size(sample.encoded, ImageLimits())
    return chosen


def part_of(key: str) -> Part:
    """Return the part of a validation set that a photograph belongs to; it depends on the key."""
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    return "select" if int.from_bytes(digest) % 3 == 0 else "report"


def openai_templates() -> tuple[str, ...]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # takes seconds to import

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def scored(
    model: SamClip,
    pictures: Sequence[T],
    frame: Frame[T],
    score: ScoreBatch[T, R],
    what: str,
) -> list[R]:
    """Return the record of each picture, in order.

    ``frame`` reads a picture into the model frame, ``score`` makes the records of a batch from its
    features.
    """
    at_once = 1 if model.engine.device == "cpu" else AT_ONCE
    batches = [pictures[start : start + at_once] for start in range(0, len(pictures), at_once)]

    def records(batch: Sequence[T]) -> Sequence[R]:
        features = encode([frame(model, picture) for picture in batch], model)
        return score(model, list(zip(batch, features, strict=True)))

    return list(chain.from_iterable(parallel.shared(batches, records, what)))


def each(score: Score[T, R]) -> ScoreBatch[T, R]:
    """Return the function that makes the records of a batch picture by picture."""
    return lambda model, batch: [score(model, *pair) for pair in batch]


def encode(framed: Sequence[Prepared], model: SamClip) -> list[ImageFeatures]:
    """Encode a batch, in halves if it does not fit into the device's memory."""
    try:
        return model.encode_batch(framed)
    except MemoryError:
        half = len(framed) // 2
        if not half:
            raise
    return encode(framed[:half], model) + encode(framed[half:], model)
