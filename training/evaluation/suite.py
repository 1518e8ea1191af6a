"""The inputs and outputs of every evaluation task."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from samclip_core.model import SamClip
from training.data.annotations import Sample, read_shards

T = TypeVar("T")

Metrics = dict[str, float]  # named figures in [0, 1]
Protocol = Literal["whole", "square", "sliding"]
FeatureMap = Literal["tokens", "sam"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one evaluation run.

    ``limit``: images per set, spread evenly over it (None: all). ``annotations`` and
    ``detections``: JSON files that replace the layout's annotations and the true boxes.
    """

    root: Path
    limit: int | None = None
    protocol: Protocol = "whole"
    refine: bool = False
    annotations: Path | None = None
    detections: Path | None = None
    features: FeatureMap = "tokens"
    seed: int = 0


Task = Callable[[SamClip, Options], Metrics]


def limited(items: Sequence[T], limit: int | None) -> list[T]:
    """Return ``limit`` items, spread evenly, or all if there are fewer."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def own_samples(
    options: Options,
    source: str,
    split: str = "val",
    usable: Callable[[Sample], object] = lambda _: True,
) -> list[Sample]:
    """Return the usable samples of a split of one of our own sets, up to the limit."""
    samples = read_shards(options.root, source, split)
    return limited([sample for sample in samples if usable(sample)], options.limit)


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Iterate over the items with a progress bar on standard error."""
    return iter(tqdm(items, desc=what, mininterval=2))
