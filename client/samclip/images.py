"""Image files: what folders, globs and addresses name, the bytes of a file, and its pixels."""

import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from samclip.files import download, is_url, read_file
from samclip.values.pictures import SUFFIXES as SUFFIXES
from samclip.values.pictures import image_key as image_key
from samclip.values.pictures import turn_of as turn_of

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
OTHERS = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff"}
"""Photographs that are not read: in a folder each of them is named as a problem."""
_BANDS = ((), (3,), (4,))  # grey, RGB, and RGB with an alpha channel, which is ignored
_NOT_PNG = ("CMYK", "YCbCr", "HSV")  # Pillow's modes for colours that PNG does not have


class Source(NamedTuple):
    """One image. ``name`` is its path or address, or its number if it is an ``image`` in memory.

    ``id`` is the file's name, or its path relative to the given folder. A source with a
    ``problem`` cannot be read.
    """

    name: str
    id: str = ""
    problem: str = ""
    image: "ImageSource | None" = None


def image_files(given: Iterable[str]) -> list[Source]:
    """Return the images of folders, globs, paths and addresses, in order, each once."""
    return list(dict.fromkeys(source for each in given for source in _expand(each)))


def check_ids(found: Sequence[Source]) -> None:
    """Raise ValueError if two images would have the same id."""
    first: dict[str, str] = {}
    for source in found:
        other = first.setdefault(source.id, source.name)
        if os.path.abspath(other) != os.path.abspath(source.name):
            raise ValueError(
                f"{other} and {source.name} would both have the id {source.id!r}: give the folder "
                "that contains both (ids are paths relative to it), or rename one"
            )


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
    return file.suffix.lower() in (*SUFFIXES, *OTHERS) and not hidden and is_file


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


def encode_image(source: ImageSource) -> bytes:
    """Return the bytes of an image file: files and bytes unchanged, pixels encoded as PNG.

    source: a path, an http or https address, a file's bytes, a Pillow image, or uint8 H×W (grey)
    or H×W×3 (RGB). Raises OSError if a file cannot be read or downloaded, ValueError if it is
    empty, too large or no regular file, TypeError for any other kind of source.
    """
    if is_url(source):
        source = download(str(source))
    if isinstance(source, str | os.PathLike):
        source = read_file(source)
    if isinstance(source, bytes):
        if not source:
            raise ValueError("the file is empty: expected a JPEG, PNG or WebP file")
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in _BANDS:
            found = f"{source.dtype} {source.shape}"
            raise TypeError(f"expected an array of uint8 H×W or H×W×3, found {found}")
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        raise TypeError(
            "expected a path, an address, bytes, a Pillow image or an array, "
            f"found {type(source).__name__}"
        )
    if source.mode in _NOT_PNG:
        source = source.convert("RGB")
    buffer = io.BytesIO()
    source.save(buffer, "PNG", compress_level=1)  # lossless and fast
    return buffer.getvalue()


def read_pixels(encoded: bytes) -> np.ndarray:
    """Return uint8 H×W×3 of an image file after EXIF orientation, the frame of all replies.

    Like the service, it ignores EXIF data after the pixels of a PNG.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        turn = turn_of(image)
        pixels = image.convert("RGB")
    return np.asarray(pixels if turn is None else pixels.transpose(turn))
