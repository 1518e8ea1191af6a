"""The measures of all stages are checked before the first stage."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from training.evaluation.while_training import check_measures, measures_of, try_measures
from training.recipes import Recipe, debug
from training.schedule import Measures


def recipe(**changes: object) -> Recipe:
    """Return a recipe whose second stage, not its first, is measured."""
    common = {"suites": (("imagenet", "sample"),), "every": 1, "limit": 500}
    measures = Measures(**common | {"best": "imagenet/top1"} | changes)
    return replace(debug(), joint=replace(debug().joint, measures=measures))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"suites": (("imagnet", "sample"),)}, ValueError, r"of \['imagnet'\]: expected a folder"),
        ({"suites": (("imagenet", "none"),)}, FileNotFoundError, "no folder .*/none to measure"),
        ({"best": "coco-boxes/ap"}, ValueError, "expected a figure of imagenet"),
    ],
)
def test_an_unknown_measure_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
):
    (tmp_path / "sample").mkdir()
    check_measures(recipe(), str(tmp_path))
    with pytest.raises(error, match=message):
        check_measures(recipe(**changes), str(tmp_path))


def test_measures_need_a_folder_on_a_disk():
    with pytest.raises(ValueError, match="measures on s3://sets of all suites: expected a folder"):
        check_measures(recipe(), "s3://sets")
    check_measures(debug(), "s3://sets")


def test_a_trial_of_few_images_finds_a_wrong_figure():
    seen: list[Measures] = []

    def measure(net: nn.Module, measures: Measures) -> dict[str, float]:
        seen.append(measures)
        return {"imagenet/top1": 0.5, "imagenet/top5": 0.75, "imagenet/images": 4}

    try_measures(recipe(), nn.Identity(), measure)
    assert seen == [replace(*measures_of(recipe()), limit=4)]
    for best in ("imagenet/top", "imagenet/images"):
        with pytest.raises(ValueError, match="expected one of imagenet/top1, imagenet/top5"):
            try_measures(recipe(best=best), nn.Identity(), measure)
