"""A request for an answer about one picture, of any head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from samclip_core.answers.steps import Encode, Steps, Terms, Texts
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import ImageFeatures

Output = Literal["SAM", "SAM_FINE", "CLIP_DENSE", "CLIP_POOLED", "REGIONS"]
T = TypeVar("T")
NO_TEXTS: FloatArray = np.empty((0, 0), np.float32)


def check_has_masks(config: SamClipConfig) -> None:
    """Raise InvalidRequest if the checkpoint has no masks."""
    if not config.masks:
        raise InvalidRequest(
            f"the checkpoint {config.name!r} makes no masks: it classifies, makes maps and heat "
            "maps, embeds and searches; for masks, take one with a mask decoder: of kind edge, "
            "vit-b or pair, or a radio that was converted with --sam"
        )


def check_sam_layout(config: SamClipConfig) -> None:
    """Raise InvalidRequest unless SAM's tools read the masks of a checkpoint."""
    check_has_masks(config)
    if config.squash:
        raise InvalidRequest(
            f"{config.name!r} has {config.family.title}'s masks, and SAM's tools read SAM's graphs "
            "alone: let `samclip serve` answer the tool, or convert another SAM"
        )


def for_masks(config: SamClipConfig) -> tuple[Output, ...]:
    """Return the outputs that decoding reads."""
    return ("SAM", "SAM_FINE") if config.fine_dim else ("SAM",)


def check_min_score(min_score: float | None) -> None:
    """Raise InvalidPrompt unless a least score is None or 0 to 1."""
    if min_score is not None and not 0 <= min_score <= 1:
        raise InvalidPrompt(f"min_score is {min_score:g}, expected 0 to 1")


@contextmanager
def of_part(what: str) -> Iterator[None]:
    """Begin the message of an InvalidRequest with the part of the request that it is about."""
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(f"{what}: {error}") from error


class Needs(ABC):
    """What a request needs from the image encoder."""

    @abstractmethod
    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        """Return the outputs that its answer reads."""

    def check_outputs(self, config: SamClipConfig) -> None:
        """Raise InvalidRequest unless the checkpoint has these outputs."""
        if {"SAM", "REGIONS"}.intersection(self.outputs(config)):
            check_has_masks(config)

    def size(self, config: SamClipConfig) -> int:
        """Return the side of the model frame in pixels, by default the one that masks need."""
        return config.image_size

    def encoding(
        self, config: SamClipConfig, texts: Sequence[Texts] = (), image: Any = None
    ) -> Encode:
        """Return what to ask of the encoder. Raises InvalidRequest, as ``check_outputs``."""
        self.check_outputs(config)
        return Encode(self.outputs(config), self.size(config), texts, image)


class Request(Needs, Generic[T]):
    """A request whose answer is a program, often of one picture's features and some texts."""

    @property
    def texts(self) -> Sequence[str]:
        """The X texts that the text encoder embeds, with the checkpoint's templates; often none."""
        return ()

    @property
    def shared_texts(self) -> Sequence[str]:
        """Texts that all requests of a kind need: embedded once, as a set of their own."""
        return ()

    def check(self, geometry: Geometry) -> None:
        """Raise an InvalidRequest unless the request fits a picture of this size."""

    @property
    def asked(self) -> list[Texts]:
        """The sets of texts, none of them empty."""
        return [Texts(labels) for labels in (self.texts, self.shared_texts) if labels]

    def program(self, config: SamClipConfig, terms: Terms) -> Steps[T]:
        """Answer the request, from its picture to the result. Raises an InvalidRequest."""
        texts = self.asked
        features = yield self.encoding(config, texts)
        self.check(features.geometry)
        text_XD = yield from rows_of(texts)
        yield None
        return (yield from self.steps(features, text_XD, config, terms))

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[T]:
        """Compute the answer; ``text_XD`` has a row of length 1 per text, then per shared text.

        Without any, it is ``NO_TEXTS``. A request with a ``program`` of its own may have no steps.
        Raises InvalidLabels.
        """
        raise NotImplementedError


def rows_of(texts: Sequence[Texts]) -> Steps[FloatArray]:
    """Ask for texts, and return all their vectors, X×D."""
    rows = []
    for some in texts:
        rows.append((yield some))
    return np.concatenate(rows) if rows else NO_TEXTS
