from collections.abc import Sequence

import numpy as np
import pytest

from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from tests.photographs import draw, instance, jpg, sample
from training.data.sample import Sample
from training.fitting import searches
from training.fitting.searches import Counts

MANY = 20


def counts(found_C: Sequence[int], points_C: Sequence[int], photos: int) -> Counts:
    """Return a set of photographs with ten regions each, all of which are alike."""
    return Counts(
        np.tile(found_C, (photos, 1)), np.tile(points_C, (photos, 1)), np.full(photos, 10)
    )


def test_of_searches_that_find_as_much_the_one_with_the_fewest_points_is_kept() -> None:
    one = counts([7, 7, 6, 7], [256, 110, 90, 120], MANY)
    assert searches.fewest_points([one]) == 1


def test_a_search_that_loses_recall_in_any_set_is_not_kept() -> None:
    alike = counts([7, 7], [120, 90], MANY)
    losing = counts([7, 6], [120, 90], MANY)
    assert searches.fewest_points([alike]) == 1
    assert searches.fewest_points([alike, losing]) == 0


def test_few_photographs_do_not_show_that_a_search_loses_nothing() -> None:
    """Two photographs in which one finds a region more and one less, as in many where none does."""
    few = Counts(np.array([[6, 5], [5, 6], [6, 5]]), np.tile([120, 90], (3, 1)), np.full(3, 10))
    assert searches.fewest_points([few]) == 0
    alike = [counts([7, 7], [120, 90], count) for count in (1, searches.LEAST_PHOTOGRAPHS)]
    assert [searches.fewest_points([one]) for one in alike] == [0, 1]


def test_where_nothing_is_found_there_is_no_choice() -> None:
    assert searches.fewest_points([counts([0, 0], [120, 90], MANY)]) is None
    assert searches.fewest_points([]) is None


@pytest.fixture(scope="module")
def photograph() -> Sample:
    drawing = draw(0)
    things = [
        instance(drawing.labels_HW == label, category="dog", iscrowd=0) for label in (1, 2, 3)
    ]
    return sample("things", encoded=jpg(drawing.image_HW3), info={"instances": things})


def test_candidates_find_what_the_model_finds_and_decode_each_point_once(
    tiny_model: SamClip, photograph: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MATCH", 0.1)  # with random weights, no mask fits by half
    decoded, segment = [], tiny_model.sam_head.segment

    def counted(
        features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
    ) -> list[MaskSet]:
        decoded.extend(prompts)
        return segment(features, prompts, multimask)

    own = tiny_model.config.fitted.search
    features = tiny_model.regions(photograph.encoded)
    monkeypatch.setattr(tiny_model.sam_head, "segment", counted)
    found = searches.counts(tiny_model, [photograph], [None, own, own])
    points = tiny_model.config.points_per_side**2
    assert len(decoded) == points == found.points_PC[0, 0]
    assert 0 < found.points_PC[0, 1] < points
    assert found.points_PC[0, 1] == found.points_PC[0, 2]
    assert found.regions_P.tolist() == [3]
    assert found.found_PC[0, 1] == searches.regions_found(features, photograph) > 0


def test_the_search_stays_where_no_photograph_has_regions(tiny_model: SamClip) -> None:
    before = tiny_model.config.fitted.search
    assert searches.fit(tiny_model, [[sample("things", info={"instances": []})]], before) is before
    assert searches.measured("things", [], []) == {}


def test_recall_is_over_regions_and_its_interval_over_photographs(photograph: Sample) -> None:
    figures = searches.measured("things", [3, 0, 1], [photograph] * 3)
    name = "things_everything_recall"
    assert figures[name] == pytest.approx(4 / 9)
    assert 0 <= figures[f"{name}_low"] < 4 / 9 < figures[f"{name}_high"] <= 1
    assert figures["things_everything_regions"] == 9
