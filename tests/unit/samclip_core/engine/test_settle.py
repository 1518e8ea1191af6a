"""Choices are made in a process of its own, once, and again where they were disturbed."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from samclip_core.engine import settle as module
from samclip_core.engine.choice import Choice, Choices
from samclip_core.engine.settle import known, settle
from samclip_core.io import checkpoint
from tests.checkout import sources

EDGE = checkpoint.resolve("edge")
MADE = Choice("openvino float32", {}, True)
PARTS = ("image_encoder", "mask_decoder", "text_encoder")


def choices(folder: Path) -> Choices:
    return Choices(checkpoint.identity(EDGE), "float32", folder, 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Return a list of the parts that each process would measure; it finds them quiet."""
    asked: list[tuple[str, ...]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        parts = tuple(word for word in command if word in PARTS)
        asked.append(parts)
        time.sleep(0.05)
        for part in parts:
            assert choices(tmp_path / "it").choice(part) is None
            choices(tmp_path / "it").choose(part, MADE)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return asked


def ask(folder: Path, again: bool = False) -> None:
    settle(EDGE, "cpu", "float32", 0, folder, again)


def test_it_is_measured_once_and_again_on_request(
    tmp_path: Path, measured: list[tuple[str, ...]]
) -> None:
    ask(tmp_path / "it")
    ask(tmp_path / "it")
    assert measured == [PARTS]
    ask(tmp_path / "it", again=True)
    assert measured == [PARTS, PARTS]


@pytest.mark.parametrize(
    ("busy", "changed", "again"),
    [(False, {}, True), (True, {}, False), (True, {"at": 0.0}, True)],
)
def test_what_was_disturbed_is_measured_at_the_next_start_that_is_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: list[tuple[str, ...]],
    busy: bool,
    changed: dict[str, float],
    again: bool,
) -> None:
    ask(tmp_path / "it")
    choices(tmp_path / "it").choose("mask_decoder", replace(MADE, quiet=False, **changed))
    monkeypatch.setattr(module, "busy", lambda: busy)
    ask(tmp_path / "it")
    assert measured[1:] == [("mask_decoder",)] * again


def test_nothing_is_measured_that_could_not_be_kept_or_chosen(
    tmp_path: Path, tiny_checkpoint: Path, measured: list[tuple[str, ...]]
) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    ask(tmp_path / "open")
    (tmp_path / "file").write_text("no folder")
    ask(tmp_path / "file")
    settle(EDGE, "cuda", "auto", 0, tmp_path / "it")
    settle(tiny_checkpoint, "cpu", "auto", 0, tmp_path / "it")  # without graphs
    assert measured == []


def test_two_starts_at_once_measure_once(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    """The second one waits for the first, and finds its choices."""
    with ThreadPoolExecutor() as starts:
        for done in [starts.submit(ask, tmp_path / "it") for _ in range(4)]:
            done.result()
    assert measured == [PARTS]


def test_the_process_compares_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", sources())
    ask(tmp_path / "it")
    for choice in known(EDGE, choices(tmp_path / "it")).values():
        assert choice is not None
        assert choice.measured_ms.keys() == {"openvino float32", "onnxruntime float32"}
