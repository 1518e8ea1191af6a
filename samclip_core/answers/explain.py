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
from samclip_core.answers.request import Output, Request
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.zero_shot import check_labels, softmax
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray
from samclip_core.types import HeatMap, ImageFeatures


@dataclass(frozen=True)
class Explain(Request[HeatMap]):
    """Where is the first label? With further ones: where is it more likely than these?"""

    labels: Sequence[str]

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return proxy_attention.outputs(config)

    @property
    def texts(self) -> Sequence[str]:
        return self.labels

    def size(self, config: SamClipConfig) -> int:
        return config.size_of("semantic")

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[HeatMap]:
        attended = proxy_attention.attend(features, config.fitted.attention)
        return (yield from self.of_dense_map(attended, text_XD, config.logit_scale))

    def of_dense_map(
        self, features: ImageFeatures, text_XD: FloatArray, logit_scale: float
    ) -> Steps[HeatMap]:
        """Return the cosine of the first label with each pixel of the dense CLIP map.

        With further labels, return its share among them instead: softmax of ``logit_scale`` ×
        cosine, upsampled bilinearly before the softmax.
        """
        check_labels(self.labels)
        geometry = features.geometry
        height, width = work_size(geometry)
        rows_Hh, columns_wW = upsampling(geometry, clip_side(features), height, width)
        cosine_Lhw = cosine_maps(features, text_XD)
        values_HW = np.empty((height, width), np.float32)
        step = max(1, STRIP_VALUES // (len(self.labels) * width))
        for top in range(0, height, step):
            cosine_LsW = rows_Hh[top : top + step] @ cosine_Lhw @ columns_wW
            values_LsW = softmax(logit_scale * cosine_LsW) if len(self.labels) > 1 else cosine_LsW
            values_HW[top : top + step] = values_LsW[0]
            yield None
        low, high = float(values_HW.min()), float(values_HW.max())
        levels_HW = np.rint(255 * (values_HW - low) / (high - low or 1)).astype(np.uint8)
        size_wh = (geometry.width, geometry.height)
        return HeatMap(cv2.resize(levels_HW, size_wh, interpolation=cv2.INTER_LINEAR), low, high)
