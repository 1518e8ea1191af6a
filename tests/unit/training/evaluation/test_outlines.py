import numpy as np
import pytest

from samclip_core.calibration import UNCALIBRATED, AdaptiveSearch
from samclip_core.model import SamClip
from tests.photographs import sample
from training.evaluation import outlines
from training.evaluation.outlines import Outlined, ThingNames


def photo(
    vector: tuple[float, ...], holds: tuple[int, ...], share: float = 0.5, right: bool = True
) -> ThingNames:
    vector_D = np.array(vector, np.float32)
    return ThingNames(
        vector_D / np.linalg.norm(vector_D),
        np.array(holds, np.bool_),
        np.array([share], np.float32),
        np.array([right]),
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


@pytest.mark.parametrize(
    ("found", "explained"),
    [
        ({None: 100, 0.5: 97, 0.35: 98, 0.2: 100}, 0.35),
        ({None: 100, 0.5: 97, 0.35: 97, 0.2: 97}, None),
        ({None: 0}, 0.3),  # what was there stays
    ],
)
def test_a_search_asks_the_fewest_points_that_find_as_much(
    tiny_model: SamClip,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[float | None, int],
    explained: float | None,
) -> None:
    before = AdaptiveSearch(explained=0.3, parted=0.2, min_predicted_iou=0.1, min_area=0.01)
    fitting = Outlined(tiny_model, [], ["a cat"])
    monkeypatch.setattr(
        fitting, "_found", lambda search: np.array([found[search and search.explained]])
    )
    search = fitting._fewest_points(before)
    assert (search and search.explained) == explained
    if search and search != before:
        assert search.min_area == outlines.MIN_AREA


def test_a_search_that_asks_fewer_points_may_keep_less_certain_masks(
    tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting = Outlined(tiny_model, [], ["a cat"])
    lower = tiny_model.config.min_predicted_iou - outlines.LOWER

    def found(search: AdaptiveSearch | None) -> np.ndarray:
        few = search and (search.explained > 0.35 or search.min_predicted_iou > lower + 0.01)
        return np.array([97 if few else 100])

    monkeypatch.setattr(fitting, "_found", found)
    search = fitting._fewest_points(None)
    assert search is not None
    assert (search.explained, search.min_predicted_iou) == (0.35, pytest.approx(lower))


def test_without_outlines_the_numbers_stay(tiny_model: SamClip) -> None:
    fitting = Outlined(tiny_model, [sample("things", info={"instances": [{}]})], ["a cat"])
    assert fitting.fit(UNCALIBRATED) is UNCALIBRATED
    assert fitting.measured(UNCALIBRATED) == {}
