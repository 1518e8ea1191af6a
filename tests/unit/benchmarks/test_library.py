"""The library benchmark measures its contenders in turns, and compares them with the baseline."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import in_process, library
from benchmarks.bench import Bench

FACTOR = {"float32": 30.0, "bfloat16": 20.0, "ours": 10.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replace measured processes by fakes with fixed times; return the calls they receive."""
    found: list[tuple[str, str]] = []

    @contextmanager
    def process(checkpoint: Any, dtype: str, root: Path | None = None) -> Iterator[Any]:
        name = dtype if root else "ours"

        def call(what: str, seconds: float, least: int) -> dict[str, Any]:
            found.append((what, name))
            return {"ms": [FACTOR[name]]}

        yield call

    monkeypatch.setattr(library, "process", process)
    monkeypatch.setattr(library, "STATES", dict.fromkeys(library.STATES, nullcontext))
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, tmp_path, None, quick=True, baseline=tmp_path)  # type: ignore[arg-type]


def test_the_baseline_is_measured_in_turns(asked: list[tuple[str, str]], bench: Bench) -> None:
    lines = {(line.row, line.column): line for line in library.run(bench)}
    assert asked[:3] == [("new_image", name) for name in ("ours", "float32", "bfloat16")]
    assert asked[3:6] == [("click", name) for name in ("ours", "float32", "bfloat16")]
    idle = f"new image, {next(iter(library.STATES))}"
    assert [lines[idle, column].median for column in library.COMPARED] == [3, 2]
    assert lines[library.EVERYTHING, "ours"].rounds == [10]


def test_calls_are_repeated_for_as_long_as_asked() -> None:
    turns: list[int] = []
    found = in_process.measure(turns.append, seconds=0, least=4)
    assert turns == [0, 1, 2, 3]
    assert len(found["ms"]) == 4
    assert found["cpu_ms"] >= 0
