"""An image gives the same answer alone and in any slot of any batch."""

import numpy as np
import pytest

from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt
from tests.tiny import make_tiny_checkpoint

SIZES = [(512, 512), (300, 480), (640, 90)]


@pytest.fixture(
    scope="module", params=["edge", "vit-b", "radio", pytest.param("pair", marks=pytest.mark.slow)]
)
def model(request, tmp_path_factory) -> SamClip:
    if request.param == "pair":
        return request.getfixturevalue("small").model
    return SamClip.load(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "it", request.param))


def assert_same(one: ImageFeatures, other: ImageFeatures) -> None:
    assert one.geometry == other.geometry
    for name in ("sam_Dhw", "clip_dense_Dhw", "clip_pooled_D"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-4, rtol=0)


def test_features(model, photograph):
    prepared = [model.prepare(photograph(*size)) for size in SIZES]
    alone = [model.encode(image) for image in prepared]
    for order in [(0, 1), (1, 2, 0), (2, 0, 0, 1)]:
        for slot, features in zip(
            order, model.encode_batch([prepared[slot] for slot in order]), strict=True
        ):
            assert_same(features, alone[slot])


def test_masks(model, photograph):
    features = [model.encode(photograph(*size)) for size in SIZES]
    requests = [
        (item, [Prompt(points=((10.0, 20.0),)), Prompt(box=(5.0, 6.0, 60.0, 70.0))])
        for item in features
    ]
    together = model.sam_head.decode_batch(requests)
    for (item, prompts), answers in zip(requests, together, strict=True):
        for prompt, answer in zip(prompts, answers, strict=True):
            (alone,) = model.segment(item, [prompt])
            np.testing.assert_allclose(answer.logits_Mhw, alone.logits_Mhw, atol=1e-4, rtol=0)
            np.testing.assert_allclose(
                answer.predicted_iou_M, alone.predicted_iou_M, atol=1e-4, rtol=0
            )
