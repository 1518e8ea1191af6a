"""A head of one's own without code: a linear layer over embeddings, in a folder of three files.

    head.json             kind, model, outputs, classes, threshold, figures
    weights.safetensors   weight C×D and bias C, float32
    README.md             the card

``samclip probe`` makes it. C classes, D width.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
MAX_CLASSES = 10_000
_MOST_BYTES = 2**28
"""Of either file: more than 10,000 classes of the widest encoder have."""


@dataclass(frozen=True)
class Part:
    """The parameters of a probe that was fitted on boxes.

    area: x_min, y_min, x_max, y_max in pixels of the picture; none: all of it.
    """

    area: Box | None = None


class Linear(NamedTuple):
    """A linear layer: ``weight_CD`` and ``bias_C``, float32."""

    weight_CD: NDArray[np.float32]
    bias_C: NDArray[np.float32]

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return the probability of each class, …×C, for vectors of length 1, …×D."""
        return softmax(vectors @ self.weight_CD.T + self.bias_C, axis=-1)


class Probe(Head):
    """A linear classifier of pictures, or of boxes in them, fitted by ``samclip probe``."""

    def __init__(self, folder: Path) -> None:
        """Read a folder; no code in it is run. Raises HeadError if it is missing or damaged."""
        self._about = _read_about(folder / ABOUT)
        self.classes = self._about["classes"]
        self.outputs = self._about["outputs"]
        self.Parameters = Part if self.of_boxes else None
        self.threshold = self._about["threshold"]
        self.linear = _read_weights(folder / WEIGHTS, len(self.classes))
        self.__doc__ = f"Which of {len(self.classes)} classes a picture shows, or none of them."

    @property
    def of_boxes(self) -> bool:
        """Whether it was fitted on boxes."""
        return self.outputs == DENSE

    @property
    def digest(self) -> str:
        """The digest of the checkpoint whose embeddings it was fitted on."""
        return self._about["model"]["digest"]

    def load(self, model: HeadModel) -> None:
        """Raise HeadError for another checkpoint than the one that it was fitted on."""
        self.check(model.digest)
        width = self.linear.weight_CD.shape[1]
        if width != model.config.text_dim:
            raise HeadError(
                f"{WEIGHTS} has vectors of {width} numbers, the checkpoint of "
                f"{model.config.text_dim}: fit it again with samclip probe fit"
            )

    def check(self, digest: str) -> None:
        """Raise HeadError unless this is the digest of the checkpoint that it was fitted on."""
        if digest != self.digest:
            raise HeadError(
                f"this probe was fitted on {self._about['model']['name']} with the digest "
                f"{self.digest[:12]}, but the checkpoint here has {digest[:12]}: load the former, "
                "or fit it again with samclip probe fit"
            )

    def size(self, config: SamClipConfig) -> int:
        """Return the side at which a client's ``embed`` and ``features`` encode."""
        return config.size_of("semantic" if self.of_boxes else "retrieval")

    def answer(self, features: ImageFeatures, parameters: Part | None) -> Answer:
        """Return the best class, "" for none of them, its probability, and that of each class."""
        if self.of_boxes:
            height, width = features.geometry.height, features.geometry.width
            box = (parameters and parameters.area) or (0.0, 0.0, float(width), float(height))
            (vector_D,) = embed_areas(features, [Area(box)])
        else:
            vector_D = pooled(features)
        probability_C = self.linear.probabilities(vector_D)
        order = np.argsort(-probability_C, kind="stable")
        scores = [{"class": self.classes[c], "probability": float(probability_C[c])} for c in order]
        best: dict[str, Any] = scores[0]
        known = best["probability"] >= self.threshold
        return {**best, "class": best["class"] if known else "", "scores": scores}


def _read_about(path: Path) -> dict[str, Any]:
    """Return head.json with checked values. Raises HeadError."""
    try:
        about = json.loads(_read(path))
        classes, model, outputs = about["classes"], about["model"], tuple(about["outputs"])
        texts = [about["kind"], model["name"], model["digest"], *classes]
        valid = (
            all(isinstance(text, str) and text for text in texts)
            and about["kind"] == KIND
            and isinstance(classes, list)
            and 2 <= len({*classes}) == len(classes) <= MAX_CLASSES
            and outputs in (POOLED, DENSE)
            and math.isfinite(threshold := float(about["threshold"]))
            and 0 <= threshold <= 1
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not valid:
        raise _damaged(path, f'expected kind "{KIND}", classes, outputs and a threshold')
    return {**about, "outputs": outputs, "threshold": threshold}


def _read_weights(path: Path, classes: int) -> Linear:
    """Return the weights of a safetensors file. Raises HeadError if they are damaged."""
    content = _read(path)
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        linear = Linear(*(_tensor(header[name], data) for name in ("weight", "bias")))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    weight_CD, bias_C = linear
    if weight_CD.ndim != 2 or len(weight_CD) != classes or bias_C.shape != (classes,):
        found = f"weights of {weight_CD.shape} and a bias of {bias_C.shape}"
        raise _damaged(path, f"{found} for {classes} classes")
    if not (np.isfinite(weight_CD).all() and np.isfinite(bias_C).all()):
        raise _damaged(path, "numbers that are not finite")
    return linear


def _tensor(about: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    """Return a tensor of a safetensors file. Raises ValueError unless it is whole and float32."""
    start, end = about["data_offsets"]
    if about["dtype"] != "F32" or not 0 <= start <= end <= len(data):
        raise ValueError(f"{about['dtype']} at {start} to {end} of {len(data)} bytes")
    if any(side < 0 for side in about["shape"]):
        raise ValueError(f"the shape {about['shape']}")
    return np.frombuffer(data[start:end], "<f4").reshape(about["shape"])


def _read(path: Path) -> bytes:
    """Return a file of a bounded size. Raises HeadError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if len(content) > _MOST_BYTES:
        raise _damaged(path, f"more than {_MOST_BYTES:,} bytes")
    return content


def _damaged(path: Path, found: str) -> HeadError:
    return HeadError(
        f"{path} is not a file of a probe ({found}): expected a folder that samclip probe fit made"
    )
