"""The options of the commands: recipes, and the files of a run as its workers find them.

A recipe is given by name or from a file, with changed fields. Ray starts each worker in another
folder, so paths become absolute.
"""

import argparse
import json
import os
import runpy
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from inspect import isfunction
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import fsspec
from fsspec.implementations.local import LocalFileSystem

from samclip_core import guarded
from samclip_core.commands.models import MODELS
from samclip_core.io import checkpoint
from training.recipes import RECIPES, Recipe

D = TypeVar("D")
T = TypeVar("T")
RECIPE_FORMS = f"{', '.join(RECIPES)}, or FILE.py:FUNCTION of your own"
LOCATIONS = ("data", "text_tower", "start", "sam", "clip")
VARIABLE = "SAMCLIP_DATA"


def recipe_of(name: str) -> Recipe:
    """Return a recipe by name, or that of a function in a file, given as FILE.py:FUNCTION.

    Raises ArgumentTypeError if there is none.
    """
    if name in RECIPES:
        return RECIPES[name]()
    file, colon, function = name.rpartition(":")
    if not colon:
        raise ArgumentTypeError(f"there is no recipe {name!r}: expected {RECIPE_FORMS}")
    recipe = _own(_function_of(Path(file), function), Path(file))
    if not isinstance(recipe, Recipe):
        raise ArgumentTypeError(
            f"{name} returned {recipe!r}: expected a training.recipes.Recipe, for example "
            "replace(training.recipes.debug(), name='mine')"
        )
    return recipe


def _function_of(file: Path, function: str) -> Callable[[], object]:
    try:
        guarded.read(file)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"no file {file}: expected {RECIPE_FORMS} ({error})") from error
    content = _own(lambda: runpy.run_path(str(file), run_name=file.stem), file)
    own = {
        key: value
        for key, value in content.items()
        if isfunction(value) and value.__module__ == file.stem
    }
    if function not in own:
        raise ArgumentTypeError(
            f"{file} has no function {function!r}, which would return a training.recipes.Recipe: "
            f"it has {', '.join(own) or 'none'}"
        )
    return own[function]


def _own(run: Callable[[], T], file: Path) -> T:
    """Run code of the user's file. Its errors name the line; argparse would hide most of them."""
    try:
        return run()
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        raise ArgumentTypeError(f"{file}, line {line}: {type(error).__name__}: {error}") from error


def override(value: D, changes: Sequence[str]) -> D:
    """Return the dataclass ``value`` with changes such as ``joint.steps=10``; values are JSON.

    Raises ValueError if there is no such field or the value has another type.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r}: expected NAME=VALUE, as in joint.steps=10")
        value = _replaced(value, path.split("."), text, change)
    return value


def _replaced(value: Any, path: Sequence[str], text: str, change: str) -> Any:
    names = [known.name for known in fields(value)] if is_dataclass(value) else []
    if path[0] not in names:
        expected = ", ".join(names) or "no field: the recipe does not set this part"
        raise ValueError(f"{change!r}: no field {path[0]!r}, expected {expected}")
    old = getattr(value, path[0])
    deeper = len(path) > 1
    new = _replaced(old, path[1:], text, change) if deeper else _read(text, old, change)
    allowed = get_args(get_type_hints(type(value))[path[0]])
    if isinstance(new, str) and allowed and new not in allowed:
        raise ValueError(f"{change!r}: expected one of {', '.join(map(str, allowed))}")
    return replace(value, **{path[0]: new})


def _read(text: str, old: Any, change: str) -> Any:
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if isinstance(new, list):
        new = tuple(tuple(item) if isinstance(item, list) else item for item in new)
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if new is not None and type(new) is not type(old):
        raise ValueError(f"{change!r}: expected a value like {old!r}")
    return new


def photograph_sets(parser: argparse.ArgumentParser, flag: str, given: str | None) -> str:
    """Return the folder or URL given with ``flag``, or else the one in ``SAMCLIP_DATA``.

    Without either, the command ends with an error that says what is expected.
    """
    folder = given or os.environ.get(VARIABLE)
    if not folder:
        parser.error(
            f"no photographs: give {flag} or set {VARIABLE} to the folder that holds one folder "
            "per photograph set. docs/training.md lists the sets, their layouts, and where they "
            "are published"
        )
    return folder


def locate(given: Mapping[str, str], kind: str) -> dict[str, Any]:
    """Return the values of a command's options with absolute paths; ``kind`` is the recipe's.

    URLs and the names of bundled checkpoints stay. Raises FileNotFoundError, which names the
    option, or CheckpointError if there is no such file, folder or checkpoint.
    """
    return {name: _located(name, value, kind) if value else "" for name, value in given.items()}


def _located(name: str, value: str, kind: str) -> str:
    if name == "text_tower" or (name == "start" and kind == "edge"):
        return _checkpoint(value) if kind == "edge" else value
    if name in ("clip", "sam", "start") and _is_checkpoint(value):
        return str(checkpoint.resolve(value))
    model = value.partition(":")[0] + ":" if name == "clip" and ":" in value else ""
    option = f"--{name.replace('_', '-')} {value}"
    return model + _absolute(value.removeprefix(model), option)


def _is_checkpoint(value: str) -> bool:
    """Return whether a teacher is given as a checkpoint, and not as official files."""
    if value.startswith("hf://"):
        return True
    folders = checkpoint.BUNDLED / value, Path(value).expanduser()
    return any(checkpoint.is_here(folder) for folder in folders)


def _absolute(location: str, option: str) -> str:
    system, path = fsspec.url_to_fs(location)
    if not isinstance(system, LocalFileSystem):
        return location
    if not system.exists(path):
        pull = f"; `samclip pull {location}` makes it" if location in MODELS else ""
        raise FileNotFoundError(f"{option}: there is no such file or folder{pull}")
    return path.rstrip("/")


def _checkpoint(name: str) -> str:
    directory = checkpoint.resolve(name)
    return name if directory.parent == checkpoint.BUNDLED.resolve() else str(directory)
