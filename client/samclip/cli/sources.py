"""The images that a command is given: files, folders, globs, addresses and stdin."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from samclip.images import Source, check_ids, encode_image, image_files

STDIN = "-"
HELP = "file, folder, quoted glob, http(s) address, or - for stdin"


def expand(given: Sequence[str]) -> list[Source]:
    """Return the images of all that is given, in order, each once."""
    found = ([Source(STDIN, "stdin")] if each == STDIN else image_files([each]) for each in given)
    return list(dict.fromkeys(source for several in found for source in several))


def one(given: str) -> Source:
    """Return the only image of what is given. Raises ValueError if there are several."""
    found = expand([given])
    if len(found) > 1:
        raise ValueError(f"{given} has {len(found)} images: give one of them")
    return found[0]


def read(source: Source) -> bytes:
    """Return the image file. Raises OSError or ValueError if it cannot be had."""
    if source.problem:
        raise ValueError(source.problem)
    return encode_image(sys.stdin.buffer.read() if source.name == STDIN else source.name)


def output_names(found: Sequence[Source]) -> list[str]:
    """Return a relative path per image for what is written about it: its id without suffix.

    Images whose names would be the same keep it, except beside one that is not read. Raises
    ValueError if two ids are the same, or one leads out of the folder.
    """
    check_ids(found)
    paths = [PurePosixPath(source.id) for source in found]
    for path in paths:
        if ".." in path.parts or path.is_absolute():
            raise ValueError(
                f"the id {str(path)!r} leads out of the folder: give a path without .."
            )
    # "...jpg" has the stem "..", which is no name.
    stems = [str(path.with_suffix("") if path.stem.strip(".") else path) for path in paths]
    named = list(zip(found, stems, strict=True))
    names = [{stem, source.id} for source, stem in named if not source.problem]
    count = Counter(name for both in names for name in both)
    return [stem if count[stem] <= 1 else source.id for source, stem in named]
