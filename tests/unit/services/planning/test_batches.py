"""The arithmetic of ``samclip plan --images``."""

import json

import pytest
from samclip import cli

from services.planning.batches import MASK_BYTES, MASKS, ROW_BYTES, models, plan_batch
from services.planning.sizes import Choices, PlanError

MODEL = {"dimension": 100, "encode_cpu_s": 0.5, "everything_cpu_s": 1.5}


def test_hours_bytes_and_money_follow_from_the_images() -> None:
    found = plan_batch(
        7200, MODEL, ("embed",), cores=4, image_bytes=1e6, choices=Choices(core_hour=0.1)
    )
    assert (found.core_hours, found.hours, found.images_per_s) == (1.0, 0.25, 8.0)
    assert found.read_gb == pytest.approx(7.2)
    assert found.tables_gb == pytest.approx(7200 * (ROW_BYTES + 400) / 1e9)
    assert found.usd == pytest.approx(0.1 + found.memory_gb * 0.25 * 0.005)


def test_one_search_answers_everything_and_regions() -> None:
    both, one = (
        plan_batch(1, MODEL, asked, cores=1, image_bytes=1, choices=Choices())
        for asked in (("everything", "regions"), ("regions",))
    )
    assert both.core_seconds_an_image == one.core_seconds_an_image == 2.0
    assert (both.tables_gb - one.tables_gb) * 1e9 == pytest.approx(MASKS * MASK_BYTES)


def test_nothing_to_do_is_an_error() -> None:
    with pytest.raises(PlanError, match="expected at least 1"):
        plan_batch(0, MODEL, (), cores=1, image_bytes=1, choices=Choices())


@pytest.mark.parametrize("images", ["0", "nan", "inf"])
def test_a_number_of_images_that_is_none_is_explained(
    images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--images", images]) == 1
    assert "expected at least 1 of each" in capsys.readouterr().err


@pytest.mark.parametrize("model", models())
def test_the_command_plans_a_batch(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--images", "1e8", "--model", model, "--machine", "16-cores"]
    assert cli.main([*words, "--machines", "10", "--questions", "embed", "regions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] == 160
    assert found["hours"] == pytest.approx(found["core_hours"] / 160)
    assert found["assumed"]["questions"] == ["embed", "regions"]
    assert cli.main(words) == 0
    assert models()[model]["about"] in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*words, "--images-per-second", "3"])
