"""Requests of heads that the library and the services answer alike."""

import numpy as np

from samclip_core.answers.request import Output, Request
from samclip_core.answers.steps import Steps, Terms, run
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.heads.head import Head
from services.settings import Settings
from tests.in_process import ANYBODY


class Brightest(Request[float]):
    """The largest value of the SAM embedding: an answer without texts."""

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return ("SAM",)

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[float]:
        yield None
        assert features.sam_Dhw is not None
        assert not text_XD.size
        return float(features.sam_Dhw.max())


async def test_an_answer_may_need_no_texts(settings: Settings) -> None:
    clip = SamClip.load(settings.checkpoint)
    features = clip.encode(np.zeros((30, 40, 3), np.uint8))
    terms = Terms(min_predicted_iou=0, min_stability=0, at_once=1)
    steps = await Head(settings).steps(ANYBODY, features, Brightest(), terms)
    assert run(steps, clip.sam_head) == clip._answer(features, Brightest())
