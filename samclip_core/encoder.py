"""``Encoders``: the encoders of a checkpoint in one process, without its heads.

T texts, L labels, N tokens, D width, B batch, S side of the model frame, H W pixels of the
original picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import beside, zero_shot
from samclip_core.engine import load as load_engine
from samclip_core.engine.base import CACHE_DIR, DtypeChoice, Engine, EngineName
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint
from samclip_core.io.image import ImageLimits, Readable, read
from samclip_core.nn import tokenizer
from samclip_core.types import ImageFeatures

if TYPE_CHECKING:
    from samclip_core.nn.network import SamClipNet

TEXTS_AT_ONCE = 64
"""Most texts per run of the text encoder: larger batches are no faster."""
LABELS_KEPT = 16
"""Sets of labels and templates whose embeddings are kept."""
Image = Readable | ImageFeatures
"""A file (bytes, or its path), a PIL picture, RGB uint8 H×W×3, or the features that
``SamClip.encode`` returned.

Features are used as they are; the others are encoded at the task's side
(``SamClipConfig.size_of``)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture in the model frame, ready for the encoder: ``pixels_3SS`` RGB uint8."""

    pixels_3SS: NDArray[np.uint8]
    geometry: Geometry


class Encoders:
    """The image encoder and the text encoder of a checkpoint."""

    def __init__(self, directory: Path, engine: Engine, limits: ImageLimits | None = None) -> None:
        """Not for direct use: call ``load``."""
        self.config, self.digest = checkpoint.read_sealed_config(directory)
        self.demonstration = checkpoint.demonstration(directory)
        int8 = checkpoint.graphs(directory).get(checkpoint.INT8_GRAPH, {})
        self._int8_digest = str(int8.get("sha256", ""))
        self.engine = engine
        self.limits = limits or ImageLimits()
        self._tokenizer = tokenizer.load(directory)
        self._beside = beside.read(directory, self.config)
        self._labels = dict[tuple[tuple[str, ...], tuple[str, ...]], NDArray[np.float32]]()

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path = "edge",
        device: str = "cpu",
        dtype: DtypeChoice = "auto",
        limits: ImageLimits | None = None,
        engine: EngineName = "auto",
    ) -> Self:
        """Load a bundled checkpoint by name, or one from its directory.

        ``dtype`` is the precision of the image encoder; "auto" takes the fastest one on this
        processor: float32, bfloat16 or int8. The mask decoder runs in the processor's fastest
        floating-point precision, and in float32 if ``dtype`` is "float32". ``engine``
        "auto" runs exported graphs on a CPU, in the faster runtime, and torch on a GPU or if there
        are no graphs. Raises CheckpointError if a file is missing or damaged, or the engine or
        precision is unavailable.
        """
        directory = checkpoint.resolve(name_or_dir)
        loaded = load_engine(
            directory, device, dtype, engine=engine, cache_dir=CACHE_DIR.expanduser()
        )
        return cls(directory, loaded, limits)

    @property
    def dtype(self) -> str:
        """The precision of the image encoder, one of ``samclip_core.engine.base.Dtype``.

        For int8, the first digits of the graph's digest follow, as in "int8:4caf4841", because
        another calibration of the same weights gives other embeddings.
        """
        dtype = self.engine.dtype
        return f"{dtype}:{self._int8_digest[:8]}" if dtype.startswith("int8") else dtype

    @property
    def graphs(self) -> str:
        """The digest of the compiled graphs; empty if torch runs the networks."""
        return self.engine.graphs

    @property
    def net(self) -> "SamClipNet":
        """The torch network, frozen. Raises ValueError if the engine is not torch."""
        net: SamClipNet | None = getattr(self.engine, "net", None)
        if net is None:
            raise ValueError("compiled graphs have no modules: load with engine='torch'")
        return net

    def prepare(self, image: Readable, size: int | None = None) -> Prepared:
        """Read an image and resize it to the model frame; no model runs.

        ``size`` is the side of the frame in pixels, by default the checkpoint's ``image_size``,
        which masks need. Raises InvalidRequest for a side that the encoder cannot read, and the
        errors of ``samclip_core.io.image.read``.
        """
        size = self.config.image_size if size is None else size
        self.config.check_size(size)
        image_HW3 = read(image, self.limits)
        height, width, _ = image_HW3.shape
        geometry = Geometry(height, width, size, self.config.squash)
        return Prepared(geometry.resize(image_HW3), geometry)

    def encode(self, image: Image | Prepared, size: int | None = None) -> ImageFeatures:
        """Encode one picture for any number of calls; features are returned unchanged.

        ``size`` as in ``prepare``; it does not change a picture that is already prepared.
        """
        if isinstance(image, ImageFeatures):
            return image
        prepared = image if isinstance(image, Prepared) else self.prepare(image, size)
        return self.encode_batch([prepared])[0]

    def encode_batch(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        """Encode prepared pictures as one batch, in order; features in float16 or float32.

        Their frames have the same side. A picture's features do not depend on the rest of the
        batch.
        """
        sizes = [(item.geometry.input_height, item.geometry.input_width) for item in batch]
        pixels_B3SS = np.stack([item.pixels_3SS for item in batch])
        encoded = self.engine.encode(pixels_B3SS, np.array(sizes, np.int64))
        # Copied, as parts of a batch would keep all of it in memory, on a GPU's host pinned.
        own = np.copy if self.engine.batches else np.asarray
        columns = [[None] * len(batch) if out is None else map(own, out) for out in encoded]
        return [
            ImageFeatures(item.geometry, sam, dense, pooled, dtype=self.dtype, fine_Dhw=fine)
            for item, sam, dense, pooled, fine in zip(batch, *columns, strict=True)
        ]

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts without templates: T×D, rows of length 1. Raises InvalidLabels."""
        texts = zero_shot.as_texts(texts)
        tokenizer.check_texts(texts)
        return np.concatenate(
            [
                self.embed_tokens(self.tokenize(texts[start : start + TEXTS_AT_ONCE]))
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        )

    def embed_labels(
        self, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Return the normalised mean over the templates for each label, read-only: L×D.

        ``templates`` defaults to the checkpoint's. The same labels are used for many pictures, so
        the latest are kept. Raises InvalidLabels.
        """
        templates = self.config.templates if templates is None else zero_shot.as_texts(templates)
        key = tuple(labels), tuple(templates)
        if (known := self._labels.get(key)) is not None:
            return known
        text_LD = zero_shot.class_embeddings(self._embed_new, *key)
        text_LD.setflags(write=False)
        for old in [*self._labels][: 1 - LABELS_KEPT]:
            self._labels.pop(old, None)
        self._labels[key] = text_LD
        return text_LD

    def _embed_new(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as ``embed_text``, except those that the checkpoint has the vectors of."""
        new = [text for text in texts if text not in self._beside]
        rows = self._beside | dict(zip(new, self.embed_text(new) if new else (), strict=True))
        return np.stack([rows[text] for text in texts])

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return token ids T×N for ``embed_tokens``; no model runs. Raises InvalidLabels."""
        return self._tokenizer(texts)

    def embed_tokens(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids from ``tokenize``: T×D, rows of length 1."""
        return self.engine.embed_text(ids_TN)
