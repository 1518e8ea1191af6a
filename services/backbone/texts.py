"""Texts to embeddings, in runs of the text tower that queue for the device beside the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samclip_core.model import SamClip
from services.batching.admission import RESTED_S, moving_average
from services.batching.priority import Priority
from services.batching.queue import Queue
from services.batching.threads import Threads

MOST_TEXTS = 64
"""Most texts in one run of the text tower: larger runs gain nothing."""
FEWEST_TEXTS = 8
"""Texts in the first run, and the minimum: smaller runs spend most of their time on overhead."""
RUN_S = 0.3
"""Target for one run of the text tower, since images and cancellation wait for it: a longer run
halves the texts of the next one."""
TEXT_WORK = 1 / 32
"""Device time of a text relative to an image of ``image_size``, until both have been measured."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one run, T×N: an item of the queue, which is in no batch with others."""

    tokens_TN: NDArray[np.int64]

    @property
    def kind(self) -> object:
        return self


class TextEmbedder:
    """The text tower of a model. ``pool`` has the threads in which texts become tokens."""

    def __init__(self, model: SamClip, pool: Threads):
        self._model, self._pool = model, pool
        self._at_once = FEWEST_TEXTS
        self._text_s, self._measured = 0.0, -math.inf  # device time of a text, and when measured

    async def embed(
        self, texts: Sequence[str], priority: Priority, queue: Queue[Any, Any], image_s: float
    ) -> NDArray[np.float32]:
        """Return one unit-length row per text, T×D.

        Each run is an item of ``queue``, whose other items get their turn between two runs. An
        image, the ``work`` of 1, takes ``image_s`` (0: unknown). Raises the errors of ``submit``;
        those of ``in_pieces`` before the first run, or after it if the time that a text takes was
        not measured lately.
        """
        rows: list[NDArray[np.float32]] = []
        done = 0
        if len(texts) <= self._at_once or monotonic() - self._measured > RESTED_S:
            run = texts[: self._at_once]
            done = len(run)
            rows.append(await self._queued(run, priority, queue, self._work(image_s) * done, 0.0))
            if done == len(texts):
                return rows[0]
        work = self._work(image_s)
        with queue.in_pieces(priority, work * (len(texts) - done)) as rest:
            while done < len(texts):
                run = texts[done : done + self._at_once]
                done += len(run)
                rest.work = work * (len(texts) - done)
                rows.append(await self._queued(run, priority, queue, work * len(run), rest.begun))
        return np.concatenate(rows)

    def _work(self, image_s: float) -> float:
        return self._text_s / image_s if self._text_s and image_s else TEXT_WORK

    async def _queued(
        self,
        texts: Sequence[str],
        priority: Priority,
        queue: Queue[Any, Any],
        work: float,
        begun: float,
    ) -> NDArray[np.float32]:
        tokens = await self._pool.run(priority, "preprocess", self._model.tokenize, texts)
        rows: NDArray[np.float32] = await queue.submit(Tokens(tokens), priority, work, begun)
        return rows

    def run(self, tokens: Tokens) -> NDArray[np.float32]:
        """Embed one run in the thread of the device, and adjust the size of the next one."""
        since = monotonic()
        rows = self._model.embed_tokens(tokens.tokens_TN)
        seconds = monotonic() - since
        self._text_s = moving_average(self._text_s, seconds / len(rows), since - self._measured)
        self._measured = monotonic()
        if seconds > RUN_S:
            self._at_once = max(FEWEST_TEXTS, len(rows) // 2)
        elif len(rows) == self._at_once and seconds < RUN_S / 2:
            self._at_once = min(MOST_TEXTS, 2 * len(rows))
        return rows
