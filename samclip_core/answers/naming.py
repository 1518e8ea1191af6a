"""Names for masks: the dense CLIP map under each mask, compared with labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samclip_core.answers.areas import mean_under_masks
from samclip_core.answers.zero_shot import check_labels, softmax, unit
from samclip_core.geometry import FloatArray
from samclip_core.types import EverythingMask, ImageFeatures


class Namer:
    """Names masks by the most likely of some labels, L texts of width D."""

    def __init__(
        self,
        labels: Sequence[str],
        text_LD: FloatArray,
        logit_scale: float,
        min_score: float,
    ) -> None:
        """Leave masks without a name whose label has a smaller share than ``min_score``.

        ``text_LD`` has rows of length 1. Raises InvalidLabels.
        """
        check_labels(labels)
        self._labels = labels
        self._text_LD = text_LD.astype(np.float32)
        self._logit_scale = logit_scale
        self._min_score = min_score

    def name(self, mask: EverythingMask, features: ImageFeatures) -> EverythingMask:
        """Return the mask with its most likely label and that label's share among all.

        ``features`` are those of the picture or crop in which it was found.
        """
        if features.clip_dense_Dhw is None:
            raise ValueError("these features have no dense CLIP map: encode with CLIP_DENSE")
        logits_1ss = mask.logits_hw[None]
        (mask_D,) = mean_under_masks(features.geometry, features.clip_dense_Dhw, logits_1ss)
        return self.name_by(mask, mask_D)

    def name_by(self, mask: EverythingMask, mask_D: FloatArray) -> EverythingMask:
        """Return the mask with its label, as ``name``, from the mean of the CLIP map under it."""
        share_L = softmax(self._logit_scale * (self._text_LD @ unit(mask_D)))
        best = int(share_L.argmax())
        score = float(share_L[best])
        if score < self._min_score:
            return mask
        return replace(mask, label=self._labels[best], label_score=score)
