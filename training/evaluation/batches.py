"""Pictures that are encoded in batches, in this process or by the workers of a pool.

The batches do not depend on the number of workers, so neither do the figures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from samclip_core.encoder import Prepared
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.evaluation.suite import Options, progress

T = TypeVar("T")
R = TypeVar("R")
Frame = Callable[[SamClip, T], Prepared]
Score = Callable[[SamClip, Sequence[tuple[T, ImageFeatures]]], Sequence[R]]
AT_ONCE = 8
"""Pictures per batch on a GPU; on a CPU, batches are no faster and take more memory."""


def scored(
    model: SamClip,
    options: Options | None,
    pictures: Sequence[T],
    frame: Frame[T],
    score: Score[T, R],
    what: str,
) -> list[R]:
    """Return the record of each picture, in order.

    ``frame`` reads a picture into the model frame, ``score`` makes the records of a batch from its
    features. Workers get both, and the pictures, pickled.
    """
    at_once = 1 if model.engine.device == "cpu" else AT_ONCE
    batches = [pictures[i : i + at_once] for i in range(0, len(pictures), at_once)]
    task = partial(score_batch, frame, score)
    if options and options.pool:
        found = options.pool.map(model.config, task, batches)
    else:
        found = (task(model, batch) for batch in batches)
    return list(progress(chain.from_iterable(found), what, len(pictures)))


def score_batch(
    frame: Frame[T], score: Score[T, R], model: SamClip, pictures: Sequence[T]
) -> Sequence[R]:
    """Return the records of a batch."""
    features = encode([frame(model, picture) for picture in pictures], model)
    return score(model, list(zip(pictures, features, strict=True)))


def encode(framed: Sequence[Prepared], model: SamClip) -> list[ImageFeatures]:
    """Encode a batch, in halves if it does not fit into the device's memory."""
    try:
        return model.encode_batch(framed)
    except MemoryError:
        half = len(framed) // 2
        if not half:
            raise
    return encode(framed[:half], model) + encode(framed[half:], model)
