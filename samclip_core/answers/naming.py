"""Names for masks: the dense CLIP map under each mask, compared with labels."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from samclip_core.answers.areas import mean_under
from samclip_core.answers.dense import clip_side
from samclip_core.answers.zero_shot import check_labels, softmax
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
        side = clip_side(features)
        rows, columns = features.geometry.grid(side)
        inside_ss = (mask.logits_hw > 0).astype(np.float32)
        share_hw = cv2.resize(inside_ss, (side, side), interpolation=cv2.INTER_AREA)
        mask_D = mean_under(features, share_hw[:rows, :columns])
        share_L = softmax(self._logit_scale * (self._text_LD @ mask_D))
        best = int(share_L.argmax())
        score = float(share_L[best])
        if score < self._min_score:
            return mask
        return replace(mask, label=self._labels[best], label_score=score)
