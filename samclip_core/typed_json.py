"""A JSON value becomes a dataclass of plain types, and nothing else."""

import sys
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from samclip_core.errors import CheckpointError
from samclip_core.families.family import AGAIN


def read(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON ``value`` to the type ``kind``. Raises CheckpointError if it does not fit."""
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if get_origin(kind) in (types.UnionType, Union):  # a type or None; Union with a Literal
        return None if value is None else read(get_args(kind)[0], value, where)
    if get_origin(kind) is dict and isinstance(value, dict):
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(read(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    choices = ", ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else ""
    expected = f"one of {choices}" if choices else f"of type {getattr(kind, '__name__', kind)}"
    raise CheckpointError(f"{where}: {value!r} is not {expected}: {AGAIN}")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {value!r} is not an object: {AGAIN}")
    names = {one.name for one in fields(kind) if one.default_factory is MISSING}
    optional = {one.name for one in fields(kind) if one.default is None}
    unknown, missing = sorted(value.keys() - names), sorted(names - value.keys() - optional)
    if unknown or missing:
        raise CheckpointError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; the checkpoint belongs to "
            f"another version of this program: {AGAIN}"
        )
    hints = get_type_hints(kind)
    return kind(**{name: read(hints[name], value[name], f"{where}: {name}") for name in value})
