"""Compare answers whose floats were computed twice: processors differ in their last digits."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

ABS = 1e-5


def assert_close(found: Any, expected: Any, atol: float = ABS) -> None:
    """Compare messages, dataclasses and collections: floats within ``atol``, all else exactly."""
    assert _plain(found, lambda number: number) == _plain(
        expected, lambda number: pytest.approx(number, rel=0, abs=atol)
    )


def _plain(value: Any, of_float: Any) -> Any:
    if isinstance(value, float | np.floating):
        return of_float(float(value))
    if isinstance(value, Message):
        value = {field.name: getattr(value, field.name) for field in value.DESCRIPTOR.fields}
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each, of_float) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | set):
        return [_plain(each, of_float) for each in value]
    return value
