"""The names of models in the setting ``models``: of a checkpoint, or of another name."""

import re
from pathlib import Path, PurePosixPath

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def read(entry: str) -> tuple[str, str]:
    """Return the name of a model, and its checkpoint or the name that it stands for."""
    name, _, value = entry.partition("=")
    return (name, value) if value else (name_of(entry), entry)


def name_of(checkpoint: str) -> str:
    """Return the last part of a checkpoint; of a relative folder like ``.``, that of its path."""
    name = PurePosixPath(checkpoint).name
    return name if name not in ("", "..") else Path(checkpoint).resolve().name


def check(entries: tuple[str, ...]) -> tuple[str, ...]:
    named = dict(map(read, entries))
    if len(named) < len(entries):
        raise ValueError("two models have one name: give each its own, as in NAME=CHECKPOINT")
    for name, value in named.items():
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a model: expected up to 64 letters, digits, dots, dashes "
                "and underscores, as in NAME=CHECKPOINT"
            )
        other = named.get(value, value)
        if value != name and other != value and other in named:
            raise ValueError(f"{name!r} stands for {value!r}, which is an alias: name its model")
    return entries
