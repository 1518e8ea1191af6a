"""The heat map of a label is its upsampled similarity, or its share, in bounded memory."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samclip_core.answers.explain import Explain, Label
from samclip_core.answers.steps import run
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import Geometry
from samclip_core.types import HeatMap, ImageFeatures
from tests.fakes import FakeSamHead, features_of

SCALE = 20.0
WIDE = Geometry(64, 128, 128)  # the lower half of the frame is padding


def explain(features: ImageFeatures, text_LD: np.ndarray, labels: list[str]) -> HeatMap:
    head = Explain()
    head.fit(SimpleNamespace(fitted=SimpleNamespace(attention=None), logit_scale=SCALE))
    steps = head.answer(replace(features, text_TD=text_LD), Label(labels[0], labels[1:]))
    found = run(steps, FakeSamHead(np.zeros((1, 1))))
    return HeatMap(found["map"], found["low"], found["high"])


def random_features(width: int) -> ImageFeatures:
    dense_Dhw = np.random.default_rng(0).normal(size=(width, 16, 16)).astype(np.float32)
    return ImageFeatures(WIDE, None, dense_Dhw / np.linalg.norm(dense_Dhw, axis=0))


@pytest.mark.parametrize("competitors", [0, 2])
def test_it_is_the_upsampled_similarity_or_the_share(competitors: int) -> None:
    features, labels = random_features(3), ["a", "b", "c"][: 1 + competitors]
    found = explain(features, np.eye(3)[: len(labels)], labels)
    cosine_Lhw = torch.from_numpy(features.clip_dense_Dhw[None, : len(labels), :8])
    expected_LHW = torch.nn.functional.interpolate(cosine_Lhw, (64, 128), mode="bilinear")[0]
    if competitors:
        expected_LHW = (SCALE * expected_LHW).softmax(dim=0)
    expected_HW = expected_LHW[0].numpy()
    assert (found.low, found.high) == pytest.approx((expected_HW.min(), expected_HW.max()))
    values_HW = found.low + found.levels_HW / 255 * (found.high - found.low)
    assert found.levels_HW.dtype == np.uint8
    assert np.abs(values_HW - expected_HW).max() <= 0.51 * (found.high - found.low) / 255


def test_memory_is_bounded_for_a_large_picture_and_many_competitors() -> None:
    features = features_of(Geometry(3000, 4000, 1024), np.arange(256).reshape(16, 16) % 60, 60)
    tracemalloc.start()
    heat_map = explain(features, np.eye(60), [str(index) for index in range(60)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20  # all values would take 2.9 GB
    assert (heat_map.levels_HW.shape, heat_map.levels_HW[0, 0]) == ((3000, 4000), 255)


@pytest.mark.parametrize("labels", [[""], ["a", " "]])
def test_labels_without_text_are_refused(labels: list[str]) -> None:
    with pytest.raises(InvalidLabels):
        explain(random_features(2), np.eye(2)[: len(labels)], labels)
