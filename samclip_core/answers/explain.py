"""Where the model sees a label: its map over the picture.

Shape letters: L labels (the explained one, then its competitors), D width, s rows of a strip, H W
pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from samclip_core.answers import proxy_attention
from samclip_core.answers.dense import (
    STRIP_VALUES,
    clip_side,
    cosine_maps,
    upsampling,
    work_size,
)
from samclip_core.answers.head import Answering, Head, HeadModel
from samclip_core.answers.zero_shot import check_labels, softmax
from samclip_core.config import SamClipConfig
from samclip_core.types import ImageFeatures


@dataclass(frozen=True)
class Label:
    """The label to explain, and its competitors."""

    label: str
    others: Sequence[str] = ()


class Explain(Head):
    """Where does the model see a label? With others: where is it more likely than these?

    The answer has a map of the picture's size, uint8 from ``low`` (0) to ``high`` (255).
    """

    Parameters = Label

    def load(self, model: HeadModel) -> None:
        self.fit(model.config)

    def fit(self, config: SamClipConfig) -> None:
        """Take the numbers of a checkpoint."""
        self.outputs = proxy_attention.outputs(config)
        self._sharpness, self._logit_scale = config.fitted.attention, config.logit_scale

    def texts(self, parameters: Label) -> Sequence[str]:
        return [parameters.label, *parameters.others]

    def size(self, config: SamClipConfig) -> int:
        return config.size_of("semantic")

    def answer(self, features: ImageFeatures, parameters: Label) -> Answering:
        """Return the cosine of the label with each pixel of the dense CLIP map.

        With others, return its share among them instead: softmax of the logit scale × cosine,
        upsampled bilinearly before the softmax. Raises InvalidLabels.
        """
        labels, text_LD = self.texts(parameters), features.text_TD
        check_labels(labels)
        assert text_LD is not None
        features = proxy_attention.attend(features, self._sharpness)
        geometry = features.geometry
        height, width = work_size(geometry)
        rows_Hh, columns_wW = upsampling(geometry, clip_side(features), height, width)
        cosine_Lhw = cosine_maps(features, text_LD)
        values_HW = np.empty((height, width), np.float32)
        step = max(1, STRIP_VALUES // (len(labels) * width))
        for top in range(0, height, step):
            cosine_LsW = rows_Hh[top : top + step] @ cosine_Lhw @ columns_wW
            values_LsW = softmax(self._logit_scale * cosine_LsW) if len(labels) > 1 else cosine_LsW
            values_HW[top : top + step] = values_LsW[0]
            yield None
        low, high = float(values_HW.min()), float(values_HW.max())
        levels_HW = np.rint(255 * (values_HW - low) / (high - low or 1)).astype(np.uint8)
        size_wh = (geometry.width, geometry.height)
        map_HW = cv2.resize(levels_HW, size_wh, interpolation=cv2.INTER_LINEAR)
        return {"map": map_HW, "low": low, "high": high}
