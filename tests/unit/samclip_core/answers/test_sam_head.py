"""The SAM head refuses prompts that do not fit; tests/parity shows its answers."""

import numpy as np
import pytest

from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Geometry
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt

POINT = Prompt(points=((10, 20),))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([Prompt()], "empty"),
        ([POINT, Prompt(points=((56, 3),))], "outside"),
        ([Prompt(box=(9, 9, 3, 3))], "inverted"),
        ([Prompt(mask_input_hw=np.zeros((8, 8), np.float32))], r"this model's logits are"),
        ([POINT], "no SAM: encode with SAM"),
    ],
)
def test_what_cannot_be_answered(tiny_model: SamClip, prompts: list[Prompt], message: str) -> None:
    features = ImageFeatures(Geometry(60, 55, tiny_model.config.image_size))
    with pytest.raises((InvalidPrompt, ValueError), match=message):
        tiny_model.sam_head.segment(features, prompts)
