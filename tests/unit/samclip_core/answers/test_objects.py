"""The object of a picture that a text or a vector means."""

import numpy as np
import pytest

from samclip_core.answers.evidence import BESIDE, Words
from samclip_core.answers.objects import Numbers, Sought
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import RegionWeights

WEIGHTS = RegionWeights(
    predicted_iou=2, stability=2, log_area=0.2, contrast=0.1, log_probability=0.2, border=-0.5
)
RANDOM = np.random.default_rng(0)
TEXT_D = unit(RANDOM.normal(size=8))


def numbers(**other) -> Numbers:
    """Return two objects: the first is nearer to the text, the second is not."""
    away_D = unit(RANDOM.normal(size=8))
    found = {
        "predicted_iou_R": np.array([0.3, 0.9]),
        "stability_R": np.array([0.5, 0.95]),
        "area_R": np.array([0.01, 0.2]),
        "border_R": np.array([True, False]),
        "clip_RD": np.stack([TEXT_D, unit(0.9 * TEXT_D + 0.3 * away_D)]),
        "clip_mean_D": np.zeros(8),
    }
    return Numbers(**found | other)


def words() -> Words:
    beside_ND = unit(RANDOM.normal(size=(len(BESIDE), 8)))
    return Words.of(["a thing"], np.concatenate([TEXT_D[None], beside_ND]), 20.0)


@pytest.mark.parametrize("of_text", [True, False])
def test_the_better_mask_is_meant_if_both_fit_about_as_well(of_text):
    given = words() if of_text else None
    assert Sought(TEXT_D, 20.0, WEIGHTS, given).best(numbers()) == 1
    assert Sought(TEXT_D, 20.0, None, given).best(numbers()) == 0


def test_a_good_mask_of_something_else_is_not_meant():
    something_else = np.stack([TEXT_D, -TEXT_D])
    for given in (words(), None):
        assert Sought(TEXT_D, 20.0, WEIGHTS, given).best(numbers(clip_RD=something_else)) == 0
