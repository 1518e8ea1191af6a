import numpy as np
import pytest

from samclip_core.calibration import UNCALIBRATED
from samclip_core.model import SamClip
from tests.photographs import draw, jpg, sample
from training.evaluation import outlines
from training.evaluation.outlines import NamedThings


def photo(
    vector: tuple[float, ...], holds: tuple[int, ...], share: float = 0.5, right: bool = True
) -> NamedThings:
    vector_D = np.array(vector, np.float32)
    return NamedThings(
        vector_D / np.linalg.norm(vector_D),
        np.array(holds, np.bool_),
        np.zeros((1, 3), np.float32),
        np.ones(1),
        np.zeros(1, np.intp),
        np.array([0 if right else 1]),
        np.array([share], np.float32),
    )


@pytest.mark.parametrize(
    ("things", "least"),
    [
        ([(0.9, True), (0.42, True), (0.38, False), (0.1, False)], 0.4),
        ([(0.9, True), (0.2, True)], 0.0),
        ([(0.9, False), (0.2, False)], 0.0),
        ([(0.2, True), (0.9, False)], 0.0),  # a share that tells nothing
    ],
)
def test_the_least_share_tells_right_from_wrong_names(
    things: list[tuple[float, bool]], least: float
) -> None:
    photos = [photo((1, 0), (1, 0), share, right) for share, right in things]
    assert outlines.least_share(photos) == least


def test_a_photograph_and_a_name_find_the_photograph_with_both() -> None:
    """The second photograph is nearer to the first than the third, which alone has the name."""
    text_ND = np.eye(3, dtype=np.float32)
    photos = [
        photo((1, 0, 0), (1, 0, 0)),
        photo((1, 0.1, 0), (1, 0, 0)),
        photo((1, 0, 1), (1, 0, 1)),
    ]
    weak_P, queries_P = outlines.composed(photos, text_ND, 0.01)
    strong_P, _ = outlines.composed(photos, text_ND, 3)
    assert queries_P.tolist() == [1, 1, 0]
    assert weak_P.tolist() == [1 / 2, 1 / 2, 0]
    assert strong_P.tolist() == [1, 1, 0]
    assert outlines.text_weight(photos, text_ND) == outlines.WEIGHTS[0]


def test_without_outlines_there_is_nothing_to_fit_or_measure(tiny_model: SamClip) -> None:
    text_ND = np.eye(3, dtype=np.float32)
    assert outlines.text_weight([], text_ND) is None
    assert outlines.measured(UNCALIBRATED, [], text_ND) == {}
    bare = sample("things", info={"instances": [{}]})
    features = tiny_model.encode(jpg(draw(0).image_HW3))
    named = NamedThings.of(tiny_model, features, bare, ["a cat"], np.ones(32, np.float32))
    assert not len(named.name_M)
