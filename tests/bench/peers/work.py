"""What every peer serves: a JPEG file in, the pooled embedding of the same checkpoint out."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from samclip_core import use_cores

if TYPE_CHECKING:
    from samclip_core.model import Prepared

MAX_BATCH = 8
WAIT_S = 0.002  # for a batch to fill: none of them knows, as ours does, that more is coming
PATH = "/embed"
PORT = int(os.environ.get("BENCH_PEER_PORT", "0"))


class Encoder:
    """``decode`` before the batch, ``encode`` in it; on all cores, as ours."""

    def __init__(self) -> None:
        use_cores()
        from samclip_core import SamClip  # brings in torch, unless the peer has

        directory, dtype = os.environ["BENCH_PEER_CHECKPOINT"], os.environ["BENCH_PEER_DTYPE"]
        self._model = SamClip.load(directory, dtype=dtype)
        blank = self._model.prepare(np.zeros((64, 64, 3), np.uint8))
        for size in (1, 2, 4, MAX_BATCH):
            self._model.encode_batch([blank] * size)

    def decode(self, file: bytes) -> "Prepared":
        return self._model.prepare(file)

    def encode(self, batch: "Sequence[Prepared]") -> list[list[float]]:
        found = self._model.encode_batch(batch)
        return [self._model.embed_image(features).tolist() for features in found]
