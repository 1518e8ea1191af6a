"""The choice of a precision from measured times, and of choices on disk which ones hold."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from samclip_core.engine import choice, processor
from samclip_core.engine import choice as module
from samclip_core.engine.choice import DISTURBED_S, ROUNDS, Choice, Choices, fastest, milliseconds


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((50, 30, 20, 22), "int8"),
        ((50, 47, 46, 46), "float32"),
        ((50, 30, 28, 29), "bfloat16"),
        ((50, 30, 28, 20), "int8+bfloat16"),
        ((20, 60, 60, 60), "float32"),
    ],
)
def test_a_lower_precision_is_taken_where_it_is_clearly_faster(
    times: tuple[float, ...], chosen: str
) -> None:
    names = ("float32", "bfloat16", "int8", "int8+bfloat16")
    assert fastest(dict(zip(names, times, strict=True))) == chosen


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [((0.05, 0.05), ROUNDS), ((0.05, 0.1), ROUNDS), ((3, 4), ROUNDS), ((3, 30), 2)],
)
def test_both_run_in_turns_unless_one_is_hopeless(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], rounds: int
) -> None:
    now, ran = [0.0], list[str]()

    def run(name: str, takes: float) -> None:
        ran.append(name)
        now[0] += takes

    monkeypatch.setattr(choice, "perf_counter", lambda: now[0])
    takes = dict(zip(("float32", "int8"), seconds, strict=True))
    measured = milliseconds({name: partial(run, name, each) for name, each in takes.items()})
    assert measured == pytest.approx({name: 1000 * each for name, each in takes.items()})
    assert ran == ["float32", "int8"] * rounds


def test_a_single_precision_is_not_measured() -> None:
    assert milliseconds({"float32": lambda: pytest.fail("measured")}) == {"float32": 0.0}


MADE = Choice("openvino float32", {"openvino float32": 3.5, "onnxruntime float32": 4.0}, True)


def choices(folder: Path | None, identity: str = "1", threads: int = 0, **more: str) -> Choices:
    return Choices(identity, "auto", folder, threads, **more)


def test_a_choice_is_read_for_the_same_question_alone(tmp_path: Path) -> None:
    choices(tmp_path / "it").choose("text_encoder", MADE)
    assert choices(tmp_path / "it").choice("text_encoder") == MADE
    for other in (
        choices(tmp_path / "it", "2"),
        choices(tmp_path / "it", threads=2),
        choices(tmp_path / "it", runtime="openvino"),
        choices(None),
    ):
        assert other.choice("text_encoder") is None
    assert choices(tmp_path / "it").choice("mask_decoder") is None


@pytest.mark.parametrize("changed", ["name", "cores", "instructions", "_version", "FORMAT"])
def test_another_machine_or_runtime_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    choices(tmp_path / "it").choose("text_encoder", MADE)
    other = {"cores": lambda: 99, "instructions": lambda: {"abacus"}, "FORMAT": "0"}
    where = module if changed in ("_version", "FORMAT") else processor
    monkeypatch.setattr(where, changed, other.get(changed, lambda *_: "other"))
    assert choices(tmp_path / "it").choice("text_encoder") is None


def test_a_choice_that_was_disturbed_holds_for_a_while() -> None:
    now = time.time()
    assert replace(MADE, at=0.0).holds
    assert replace(MADE, quiet=False).holds
    for at in (now - DISTURBED_S - 1, now + 1000, float("nan")):
        assert not replace(MADE, quiet=False, at=at).holds
