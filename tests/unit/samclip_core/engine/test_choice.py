"""The choice of a precision from measured times."""

from functools import partial

import pytest

from samclip_core.engine import choice
from samclip_core.engine.choice import ROUNDS, fastest, milliseconds


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
