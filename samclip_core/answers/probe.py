"""A head of one's own without code: a linear layer over embeddings, in a folder of three files.

    head.json             kind, model, outputs, classes, threshold, figures
    weights.safetensors   weight C×D and bias C, float32
    README.md             the card

``samclip probe`` makes it. C classes, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samclip_core import guarded
from samclip_core.answers.areas import Area, embed_areas
from samclip_core.answers.head import Answer, Head, HeadModel
from samclip_core.answers.request import Output
from samclip_core.answers.zero_shot import pooled, softmax
from samclip_core.config import SamClipConfig
from samclip_core.errors import HeadError
from samclip_core.types import Box, ImageFeatures

ABOUT, WEIGHTS, KIND = "head.json", "weights.safetensors", "probe"
POOLED: tuple[Output, ...] = ("CLIP_POOLED",)
DENSE: tuple[Output, ...] = ("CLIP_DENSE",)
MAX_CLASSES = 1024
"""As many as a service compares as texts by default."""
_MOST_ABOUT, _MOST_WEIGHTS = 2**22, 2**26
"""Bytes of each file: above those of 1,024 classes of any encoder."""
_MOST_VALUES = 2**16
"""Of either JSON: a class has a name and a count, and a share a row of five."""

_WRONG = (OSError, ValueError, TypeError, KeyError, OverflowError)
"""What reading another file raises."""


@dataclass(frozen=True)
class Part:
    """The parameters of a probe that was fitted to boxes.

    area: x_min, y_min, x_max, y_max in pixels of the picture; None: all of it.
    """

    area: Box | None = None


class Probe(Head):
    """A linear classifier of pictures, or of boxes in them, that ``samclip probe`` fitted."""

    def __init__(self, folder: Path) -> None:
        """Read a folder; no code in it runs. Raises HeadError if a file is missing or damaged."""
        about = _read_about(folder / ABOUT)
        self.model: Mapping[str, str] = about["model"]
        self.classes, self.threshold = about["classes"], float(about["threshold"])
        self.outputs = tuple(about["outputs"])
        self.of_boxes = self.outputs == DENSE
        self.Parameters = Part if self.of_boxes else None
        self._weight_CD, self._bias_C = _read_weights(folder / WEIGHTS, len(self.classes))

    def load(self, model: HeadModel) -> None:
        """Raise HeadError unless this is the checkpoint that it was fitted to."""
        self.check(model.digest)
        width = self._weight_CD.shape[1]
        if width != model.config.text_dim:
            raise HeadError(
                f"the probe's vectors have {width} numbers, those of the checkpoint "
                f"{model.config.text_dim}: fit it again with samclip probe fit"
            )

    def check(self, digest: str) -> None:
        """Raise HeadError unless this is the digest of the checkpoint that it was fitted to."""
        if digest != self.model["digest"]:
            raise HeadError(
                f"the probe was fitted to {self.model['name']} with the digest "
                f"{self.model['digest'][:12]}, the checkpoint here has {digest[:12]}: serve that "
                "one, or fit it again with samclip probe fit"
            )

    def size(self, config: SamClipConfig) -> int:
        """Return the side at which a client's ``embed`` and ``features`` encode."""
        return config.size_of("semantic" if self.of_boxes else "retrieval")

    def answer(self, features: ImageFeatures, parameters: Part | None) -> Answer:
        """Return the best class, "" for none of these, its probability, and those of all."""
        vector_D = pooled(features) if not self.of_boxes else None
        if vector_D is None:
            whole = 0.0, 0.0, float(features.geometry.width), float(features.geometry.height)
            box = (parameters and parameters.area) or whole
            (vector_D,) = embed_areas(features, [Area(box)])
        probability_C = self.probabilities(vector_D)
        scores = [
            {"class": self.classes[index], "probability": float(probability_C[index])}
            for index in np.argsort(-probability_C, kind="stable")
        ]
        probability = float(probability_C.max())
        best = scores[0]["class"] if probability >= self.threshold else ""
        return {
            "class": best,
            "probability": probability,
            "threshold": self.threshold,
            "scores": scores,
        }

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return the probability of each class, …×C, for vectors of length 1, …×D."""
        return softmax(vectors @ self._weight_CD.T + self._bias_C, axis=-1)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = guarded.read_json(path, _MOST_ABOUT, _MOST_VALUES)
        classes, model = about["classes"], about["model"]
        texts = [model["name"], model["digest"], *classes]
        valid = (
            about["kind"] == KIND
            and isinstance(classes, list)
            and all(isinstance(text, str) and text.encode() for text in texts)
            and 2 <= len({*classes}) == len(classes) <= MAX_CLASSES
            and tuple(about["outputs"]) in (POOLED, DENSE)
            and 0 <= about["threshold"] <= 1
        )
    except _WRONG as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not valid:
        raise _damaged(path, f'no kind "{KIND}", or bad classes, model, outputs or threshold')
    return about


def _read_weights(path: Path, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weight and the bias of a safetensors file. Raises HeadError if it is damaged."""
    try:
        content = guarded.read(path, _MOST_WEIGHTS)
        start = 8 + int.from_bytes(content[:8], "little")
        header = guarded.parsed(content[8:start], _MOST_VALUES)
        data = memoryview(content)[start:]
        weight_CD, bias_C = (_tensor(header[name], data) for name in ("weight", "bias"))
    except _WRONG as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if weight_CD.ndim != 2 or len(weight_CD) != classes or bias_C.shape != (classes,):
        shapes = f"weights {weight_CD.shape} and a bias {bias_C.shape}"
        raise _damaged(path, f"{shapes} for {classes} classes")
    if not (np.isfinite(weight_CD).all() and np.isfinite(bias_C).all()):
        raise _damaged(path, "numbers that are not finite")
    return weight_CD, bias_C


def _tensor(about: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    """Return a tensor. Raises ValueError unless it is float32, whole, and of its stated shape."""
    start, end = about["data_offsets"]
    shape = [*about["shape"]]
    if about["dtype"] != "F32" or not 0 <= start <= end <= len(data) or min(shape) < 1:
        raise ValueError(f"{about['dtype']} {shape} at {start} to {end} of {len(data)} bytes")
    return np.frombuffer(data[start:end], "<f4").reshape(shape)


def _damaged(path: Path, found: str) -> HeadError:
    return HeadError(
        f"{path} is no part of a probe ({found}): expected a folder that samclip probe fit made"
    )
