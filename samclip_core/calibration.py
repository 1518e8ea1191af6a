"""Numbers that are fitted to the answers of one checkpoint, and fit no other."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samclip_core.errors import CheckpointError

_AGAIN = "fit it again with `samclip calibrate`"


@dataclass(frozen=True, kw_only=True)
class RegionWeights:
    """What a region adds to the log-odds that it is a text's object: a weight per number.

    The numbers are those of ``samclip_core.answers.evidence``.
    """

    predicted_iou: float
    stability: float
    log_area: float
    contrast: float
    log_probability: float
    border: float


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Is a text's object there (``samclip_core.answers.evidence``)?

    Its log-odds are ``map_weight`` × the peak of the text's map + ``pooled_weight`` × the evidence
    of the image vector + ``offset``, and if there are weights for ``regions``, what the region
    adds. A less probable object than ``min_score`` is left out if a request does not say otherwise.
    From ``sure`` on, at least nine of ten objects were there where it was measured, by the lower
    end of an interval, present and absent ones being equally common; None if no score was that
    sure, or none was measured.
    """

    map_weight: float
    pooled_weight: float
    offset: float
    min_score: float
    regions: RegionWeights | None = None
    sure: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdaptiveSearch:
    """Which points does a search for everything ask, and which masks does it keep?

    ``explained`` and ``parted`` are distances in the SAM embedding, as
    ``samclip_core.answers.points`` uses them; ``min_area`` is the smallest mask, island or hole, as
    a fraction of the picture.
    """

    explained: float
    parted: float
    min_predicted_iou: float
    min_area: float


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Is a region an object like an example (``samclip_core.answers.find_alike``)?

    Its log-odds are the sum of ``offset`` and of these weights times their numbers: the cosines of
    the mean CLIP and SAM vectors, the quality (predicted IoU × stability), the logarithm of the
    area, and how much that differs from the example's. A less probable object than ``min_score`` is
    left out if a request does not say otherwise.
    """

    clip: float
    sam: float
    quality: float
    log_area: float
    difference: float
    offset: float
    min_score: float


@dataclass(frozen=True, kw_only=True)
class Alike:
    """The weights for examples ``within`` the same picture, and ``across`` pictures."""

    within: Likeness
    across: Likeness


@dataclass(frozen=True, kw_only=True)
class ConceptSpace:
    """How a mean of image vectors becomes a vector among texts (``answers/concepts``).

    ``mean`` is the mean of image vectors: ``text_dim`` little-endian float16 numbers in base64. It
    is subtracted from a vector, and ``bias`` times its direction is added to the difference. With a
    smaller bias, concepts win from texts less often.
    """

    mean: str
    bias: float

    @property
    def mean_D(self) -> NDArray[np.float32]:
        """The mean; no numbers at all if it is damaged."""
        try:
            made = np.frombuffer(base64.b64decode(self.mean, validate=True), "<f2")
        except ValueError:
            made = np.empty(0)
        return made.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LikelyScores:
    """From which cosine on does an image of a collection probably show what a text says?

    ``images`` is for cosines of whole images, ``objects`` for those of an image's nearest object,
    each in a collection of one image. The highest of N cosines grows as the logarithm of N, by
    ``images_growth`` and ``objects_growth`` per unit of it. ``images_most`` and ``objects_most``
    are the largest sizes at which this was measured.
    """

    images: float
    objects: float
    images_growth: float
    images_most: int
    objects_growth: float
    objects_most: int

    def among(self, count: int, *, objects: bool) -> float:
        """Return the score in a collection of ``count`` images; 0 if it is not known."""
        least, growth, most = self.images, self.images_growth, self.images_most
        if objects:
            least, growth, most = self.objects, self.objects_growth, self.objects_most
        return least + growth * math.log(count) if 1 <= count <= most else 0.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Numbers that were fitted to the answers of this checkpoint, and fit no other.

    ``attention`` is the sharpness of SAM's attention over the dense CLIP map (None: the map as it
    is), ``min_label_score`` the smallest share of a label that names a mask, and ``text_weight``
    that of a text which is combined with a picture. Without ``presence``, scores of texts are
    uncalibrated, without ``alike`` those of examples; without ``search``, a search for everything
    follows SAM's rules; without ``concepts``, concepts win too much from texts; without ``likely``,
    a search in a collection does not say that nothing fits.
    """

    presence: Presence | None
    attention: float | None
    search: AdaptiveSearch | None
    min_label_score: float
    text_weight: float
    alike: Alike | None = None
    concepts: ConceptSpace | None = None
    likely: LikelyScores | None = None

    def check(self, text_dim: int) -> None:
        """Raise CheckpointError unless scores are probabilities, and the mean has ``text_dim``."""
        least = [self.min_label_score]
        if self.presence:
            least += [self.presence.min_score, self.presence.sure or 0]
        if self.alike:
            least += [self.alike.within.min_score, self.alike.across.min_score]
        if not all(0 <= score <= 1 for score in least):
            raise CheckpointError(
                f"config.json: calibration: smallest scores {least}, expected 0 to 1: {_AGAIN}"
            )
        mean_D = None if self.concepts is None else self.concepts.mean_D
        if mean_D is not None and (len(mean_D) != text_dim or not np.isfinite(mean_D).all()):
            raise CheckpointError(
                f"config.json: calibration: the mean of concepts needs {text_dim} float16 numbers "
                f"in base64: {_AGAIN}"
            )


UNCALIBRATED = Calibration(
    presence=None, attention=None, search=None, min_label_score=0.0, text_weight=1.0
)
"""For a checkpoint to which nobody has fitted anything: no mask is left without a name, and a text
counts as much as a picture."""
