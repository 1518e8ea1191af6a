"""Choices on disk: those that were disturbed, damaged or made elsewhere are made again."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from samclip_core.engine import choice as module
from samclip_core.engine import processor
from samclip_core.engine.choice import DISTURBED_S, Choice, Choices

MADE = Choice("openvino float32", {"openvino float32": 3.5, "onnxruntime float32": 4.0}, True)


def choices(folder: Path | None, identity: str = "1", threads: int = 0, **more: str) -> Choices:
    return Choices(identity, "auto", folder, threads, **more)


def test_a_choice_is_read_for_the_same_question_alone(tmp_path: Path) -> None:
    choices(tmp_path / "it").choose("text_encoder", MADE)
    assert choices(tmp_path / "it", device="cpu").choice("text_encoder") == MADE
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


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [1],
        "x",
        {"chosen": "a", "measured_ms": 5, "quiet": True, "at": 1},
        {"chosen": "a", "measured_ms": {}, "quiet": True, "at": None},
        {"chosen": "a", "measured_ms": {"a": "fast"}, "quiet": True, "at": 1},
        {"chosen": "a", "measured_ms": {}},
    ],
)
def test_what_cannot_be_read_is_no_choice(tmp_path: Path, damaged: object) -> None:
    kept = choices(tmp_path / "it")
    kept.write_json(kept._file % "text_encoder", damaged)
    assert kept.choice("text_encoder") is None


def test_a_choice_that_was_disturbed_holds_for_a_while() -> None:
    now = time.time()
    assert replace(MADE, at=0.0).holds
    assert replace(MADE, quiet=False).holds
    for at in (now - DISTURBED_S - 1, now + 1000, float("nan")):
        assert not replace(MADE, quiet=False, at=at).holds
