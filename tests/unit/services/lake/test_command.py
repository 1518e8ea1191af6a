"""The options of ``samclip batch``; ``tests/faults/test_batch.py`` runs it."""

import json
import shlex
from pathlib import Path

import pytest
from samclip import cli

from samclip_core.model import SamClip
from services.lake import job
from services.lake.part import run_part
from tests.lake import planned
from tests.photographs import draw, jpg


def result(unread: int = 0, changed: str = "") -> job.Result:
    counts = {"images": 5, "failures": 1 + unread, "unread": unread}
    model = {"name": "tiny", "digest": "d" * 64}
    return job.Result(manifest={"model": model, "parts": 2, "counts": counts}, changed=changed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[job.Job]:
    """Return the jobs that the command would run."""
    found: list[job.Job] = []

    def run(one: job.Job, shown: bool, ready: object) -> job.Result:
        found.append(one)
        return result()

    monkeypatch.setattr(job, "run", run)
    return found


def test_the_questions_and_the_budget_reach_the_job(
    asked: list[job.Job], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", "one", "two", "--out", "lake", "--embed", "--labels", "a dog,a cat"]
    words += ["--text", "a dog, running", "--exclusive", "--device", "cuda", "--workers", "3"]
    words += ["--head", "fruit.py:Ripeness", "--head", "parts"]
    assert cli.main([*words, "--format", "coco"]) == 0
    (one,) = asked
    assert (one.sources, one.out, one.coco) == (["one", "two"], "lake", True)
    assert one.work["labels"] == ["a dog", "a cat"]
    assert (one.work["text"], one.work["exclusive"]) == (["a dog, running"], True)
    assert one.work["heads"] == ["fruit.py:Ripeness", "parts"]
    assert (one.budget.workers, one.budget.gpus) == (3, 1.0)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["images", "failures", "unread", "parts", "seconds", "model", "out"]
    assert row.split()[:4] == ["5", "1", "0", "2"]


def test_an_interrupt_says_what_is_saved_and_how_to_go_on(
    tmp_path: Path,
    tiny_model: SamClip,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "my lake"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(jpg(draw(number, 60, 80).image_HW3))

    def run(one: job.Job, shown: bool, ready: object) -> job.Result:
        run_part(tiny_model, planned(one.out, photos, tiny_model, embed=True), 0, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", run)
    words = ["batch", str(photos), "--out", str(out), "--embed"]
    assert cli.main(words) == cli.INTERRUPTED
    assert capsys.readouterr().err == (
        f"samclip batch: 2 images are saved in {out}. To go on with the others: "
        f"{shlex.join(['samclip', *words])}\n"
    )


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            result(unread=1200),
            "1,200 images could not be read (unread in my lake/failures). To try them again: "
            "samclip batch photos --out 'my lake' --embed --json",
        ),
        (
            result(changed="the sources have other images now"),
            "the sources have other images now: the result has those of the first run. For those "
            "that were added since, give another --out",
        ),
    ],
)
def test_a_result_that_lacks_images_has_an_exit_code_of_its_own(
    made: job.Result,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(job, "run", lambda one, shown, ready: made)
    words = ["batch", "photos", "--out", "my lake", "--embed", "--json"]
    assert cli.main(words) == 3
    printed = capsys.readouterr()
    assert f"samclip batch: {sentence}\n" in printed.err
    found = json.loads(printed.out)
    assert (found["counts"], found["changed"]) == (made.manifest["counts"], made.changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do: give --embed"),
        (["--embed", "--part-size", "0"], "expected 1 or more"),
        (["--embed", "--max-failures", "-1"], "expected 0 or more"),
        (["--embed", "--format", "yolo"], "invalid choice"),
        (["--embed", "--tiles", "2"], "--tiles is for --text, --everything, --semantic and"),
        (["--text", "a dog", "--tiles", "few"], "'few' is neither a number nor auto"),
    ],
)
def test_wrong_options_are_a_usage_error(
    asked: list[job.Job], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["batch", "photos", "--out", "lake", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("value", "planned"), [("2", [2, 2]), ("auto", [-1, 3]), ("1", None), ("4", None)]
)
def test_tiles_are_part_of_the_work_and_within_the_setting(
    asked: list[job.Job],
    value: str,
    planned: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SAMCLIP_MAX_TILES", "3")
    code = cli.main(["batch", "photos", "--out", "lake", "--regions", "--tiles", value])
    if value == "4":
        assert code == 1
        assert "tiles is 4, expected 0 (the whole alone) to 3" in capsys.readouterr().err
    else:
        assert asked[0].work.get("tiles") == planned


def test_two_heads_of_one_name_are_refused(
    asked: list[job.Job], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", "photos", "--out", "lake", "--head", "a.py:Ripe", "--head", "b.py:Ripe"]
    assert cli.main(words) == 1
    assert "two heads have the name 'ripe'" in capsys.readouterr().err


def test_an_unknown_setting_is_explained(
    asked: list[job.Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMCLIP_NONSENSE", "1")
    assert cli.main(["batch", "photos", "--out", "lake", "--embed"]) == 1
    assert "unknown environment variable SAMCLIP_NONSENSE" in capsys.readouterr().err
