"""Classification: which label fits a picture, or each of its areas."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from samclip_core.answers.areas import Area, embed_areas
from samclip_core.answers.request import Needs, Output
from samclip_core.answers.zero_shot import classify, pooled
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures, Score


@dataclass(frozen=True)
class Classify(Needs):
    """Which of the labels fits a picture, or each of its ``areas``? ``top_k`` None or 0: all."""

    labels: Sequence[str]
    top_k: int | None = None
    areas: Iterable[Area] | None = None

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        """Return the outputs of the image encoder that ``scores`` reads."""
        return ("CLIP_POOLED",) if self.areas is None else ("CLIP_DENSE",)

    def size(self, config: SamClipConfig) -> int:
        """Return the side of the model frame in pixels."""
        return config.size_of("classify" if self.areas is None else "semantic")

    def scores(
        self, features: ImageFeatures, text_LD: FloatArray, logit_scale: float
    ) -> Iterator[list[Score]]:
        """Yield the scores of the labels, best first, for the picture or for each area.

        Rows of ``text_LD`` have length 1. Raises InvalidLabels and InvalidRequest.
        """
        if self.areas is None:
            vectors: Iterable[FloatArray] = [pooled(features)]
        else:
            vectors = embed_areas(features, self.areas)
        for vector_D in vectors:
            yield classify(vector_D, text_LD, self.labels, logit_scale, self.top_k)
