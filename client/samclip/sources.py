"""The image files that folders, globs, paths and addresses stand for."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from samclip.download import is_url

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
OTHERS = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff"}
"""Photographs that are not read: in a folder each of them is named as a problem."""


class Source(NamedTuple):
    """One image. ``name`` is its path or address.

    ``id`` is the file's name, or its path relative to the given folder. A source with a
    ``problem`` has no file.
    """

    name: str
    id: str
    problem: str = ""


def expand(given: Iterable[str]) -> list[Source]:
    """Return the images of all that is given, in order, each once."""
    return list(dict.fromkeys(source for each in given for source in _expand(each)))


def _expand(given: str) -> Iterator[Source]:
    path = Path(given)
    if is_url(given):
        name = PureWindowsPath(unquote(urlsplit(given).path)).name  # / and \\ separate
        yield Source(given, "image" if name in ("", "..") else name)
    elif path.is_dir():
        yield from _in_folder(path)
    elif not os.path.lexists(path) and glob.has_magic(given):
        yield from _matching(given)
    else:
        yield Source(given, path.name)


def _in_folder(folder: Path) -> Iterator[Source]:
    found = [file for file in sorted(folder.rglob("*")) if _is_image(file, folder)]
    expected = ", ".join(sorted(SUFFIXES))
    for file in found:
        problem = f"not read: convert it to {expected}" if file.suffix.lower() in OTHERS else ""
        yield Source(str(file), file.relative_to(folder).as_posix(), problem)
    if not found:
        yield Source(str(folder), folder.name, f"no image files found: expected {expected}")


def _is_image(file: Path, folder: Path) -> bool:
    """Return whether a file is named as an image; hidden files and folders are left out."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    is_file = file.is_file() or not file.exists()  # a broken link is named as an error
    return file.suffix.lower() in SUFFIXES | OTHERS and not hidden and is_file


def _matching(pattern: str) -> Iterator[Source]:
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    for file in found:
        if file.is_file():
            yield Source(str(file), file.relative_to(folder).as_posix())
    if not found:
        yield Source(pattern, pattern, "no file matches")
