"""A request for an answer about one picture, of any head."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import numpy as np

from samclip_core.answers.steps import Steps, Terms
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray, Geometry
from samclip_core.types import ImageFeatures

Output = Literal["SAM", "CLIP_DENSE", "CLIP_POOLED"]
T = TypeVar("T")
NO_TEXTS: FloatArray = np.empty((0, 0), np.float32)


class Needs(ABC):
    """What a request needs from the image encoder."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that its answer reads."""

    def size(self, config: SamClipConfig) -> int:
        """Return the side of the model frame in pixels, by default the one that masks need."""
        return config.image_size


class Request(Needs, Generic[T]):
    """A request that is answered in steps from one picture's features and some texts."""

    @property
    def texts(self) -> Sequence[str]:
        """The X texts that the text encoder embeds, with the checkpoint's templates; often none."""
        return ()

    def check(self, geometry: Geometry) -> None:
        """Raise an InvalidRequest unless the request fits a picture of this size."""

    @abstractmethod
    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[T]:
        """Compute the answer; ``text_XD`` has a row of length 1 per text, or is ``NO_TEXTS``.

        Raises InvalidLabels.
        """
