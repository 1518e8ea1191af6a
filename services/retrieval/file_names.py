"""The names of collections' files, which differ even where a file system ignores case."""

import logging
from pathlib import Path

CAPITALS = "="
"""Precedes the positions of the capitals in a file name; no collection or tenant has it."""
SUFFIXES = (".sqlite-wal", ".sqlite-shm", ".usearch", ".sqlite")
"""Of all files of a collection, the one that makes it last."""

logger = logging.getLogger(__name__)


def file_name(stored: str) -> str:
    """Return the file name, without suffix, of the collection with this stored name.

    It is in lower case. After the name of one with capitals, a number in hex has their bits, the
    lowest for the first letter: ``ann=1`` is Ann's file.
    """
    capitals = sum(1 << at for at, letter in enumerate(stored) if letter.isupper())
    return f"{stored.lower()}{CAPITALS}{capitals:x}" if capitals else stored


def stored_name(file: str) -> str:
    """Return the stored name of the collection in a file. Raises ValueError if there is none."""
    lower, _, bits = file.partition(CAPITALS)
    capitals = int(bits or "0", 16)
    stored = "".join(
        letter.upper() if capitals >> at & 1 else letter for at, letter in enumerate(lower)
    )
    if file_name(stored) != file:
        raise ValueError(f"{file!r} is no name of a collection's file")
    return stored


def names_in(directory: Path) -> list[str]:
    """Return the stored names of the collections in a folder, in order.

    Files with capitals in their names, as earlier versions made, are renamed.
    """
    for path in [*directory.glob("*.sqlite")]:
        if path.stem != path.stem.lower():
            _rename(path.with_suffix(""))
    names = []
    for path in directory.glob("*.sqlite"):
        try:
            names.append(stored_name(path.stem))
        except ValueError as error:
            logger.warning("%s is ignored: %s", path, error)
    return sorted(names)


def _rename(older: Path) -> None:
    newer = file_name(older.name)
    if older.with_name(f"{newer}.sqlite").exists():
        return
    for suffix in SUFFIXES:  # an interrupted renaming is repeated, since .sqlite is the last
        path = older.with_name(older.name + suffix)
        if path.exists():
            path.rename(older.with_name(newer + suffix))
