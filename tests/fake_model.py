"""A stand-in for SamClip with predictable answers and a device that a test can block."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from samclip_core.config import EDGE
from samclip_core.encoder import Prepared
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures

SIZE, WIDTH = 32, 4


class FakeModel:
    """A model whose image maps hold the mean red value, and whose text vectors are hashes.

    ``batches`` lists the sizes of the encoded batches. Encoding blocks from ``hold`` to
    ``release``.
    """

    def __init__(self) -> None:
        self.config = replace(EDGE, name="fake", image_size=SIZE)
        self.digest = "d" * 64
        self.demonstration = False
        self.engine = SimpleNamespace(
            batches=True,
            streams=1,
            names={"image_encoder": "fake"},
            dtype="float32",
            measured_ms={},
        )
        self.sam_head = SimpleNamespace(engine=self.engine)
        self.dtype = "float32"
        self.graphs = ""
        self.batches: list[int] = []
        self.texts: list[str] = []
        self.failure: Exception | None = None
        self.running = threading.Event()
        self._free = threading.Event()
        self._free.set()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def prepare(self, image: np.ndarray, size: int = SIZE) -> Prepared:
        geometry = Geometry(*image.shape[:2], size)
        return Prepared(geometry.resize(image), geometry)

    def encode_batch(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        self.batches.append(len(batch))
        self.running.set()
        assert self._free.wait(30)
        if self.failure:
            raise self.failure
        return [self._features(prepared) for prepared in batch]

    def _features(self, prepared: Prepared) -> ImageFeatures:
        geometry = prepared.geometry
        valid = prepared.pixels_3SS[0, : geometry.input_height, : geometry.input_width]
        red = np.float32(valid.mean())
        return ImageFeatures(
            geometry,
            np.full((WIDTH, 4, 4), red),
            np.full((WIDTH, 2, 2), red),
            np.full(WIDTH, red),
        )

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def embed_tokens(self, tokens: Sequence[str]) -> np.ndarray:
        return self.embed_text(tokens)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.stack([text_vector(text) for text in texts])


def text_vector(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)
