"""The files and folders of a run, as its workers find them: Ray starts each in another folder."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from samclip_core.commands.models import MODELS
from samclip_core.io import checkpoint

LOCATIONS = ("data", "text_tower", "start", "sam", "clip", "dense", "targets")
OF_MODELS = ("clip", "dense")
"""Options whose value is a model's name, a colon and a file, or a checkpoint."""
VARIABLE = "SAMCLIP_DATA"


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
    found = dict[str, str]()
    for name, value in given.items():
        option = f"--{name.replace('_', '-')} {value}"
        if not value:
            found[name] = value
        elif name == "text_tower" or (name == "start" and kind == "edge"):
            found[name] = _checkpoint(value) if kind == "edge" else value
        elif name in (*OF_MODELS, "sam", "start") and _is_checkpoint(value):
            found[name] = str(checkpoint.resolve(value))
        else:
            model = value.partition(":")[0] + ":" if name in OF_MODELS and ":" in value else ""
            found[name] = model + _absolute(value.removeprefix(model), option)
    return found


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
