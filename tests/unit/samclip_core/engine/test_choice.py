"""The choice of a precision from measured times."""

import pytest

from samclip_core.engine.base import Dtype
from samclip_core.engine.choice import RUNS, fastest, milliseconds


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
    names: tuple[Dtype, ...] = ("float32", "bfloat16", "int8", "int8+bfloat16")
    assert fastest(dict(zip(names, times, strict=True))) == chosen


def test_every_precision_runs_equally_often() -> None:
    ran: list[str] = []
    runs = {"float32": lambda: ran.append("float32"), "int8": lambda: ran.append("int8")}
    assert list(milliseconds(runs)) == ["float32", "int8"]
    assert ran == ["float32", "int8"] * RUNS


def test_a_single_precision_is_not_measured() -> None:
    assert milliseconds({"float32": lambda: pytest.fail("measured")}) == {"float32": 0.0}
