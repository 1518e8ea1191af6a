"""What ``samclip search --out`` writes about hits: their pictures, and JSON."""

import base64
import binascii
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from samclip.cli import formats
from samclip.cli.formats import Row
from samclip.errors import plain
from samclip.images import encode_image
from samclip.thumbnails import PREFIX
from samclip.types import THUMBNAIL, Hit, Model


def save(
    hits: Sequence[Hit], rows: Sequence[Row], model: Model | None, out: Path, root: Path | None
) -> list[Path]:
    """Write hits.json, and a picture per hit, numbered from the best; return the paths.

    root: the folder with the images, if these are wanted. A hit without a picture is named on
    stderr. Raises OSError if a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number, hit in enumerate(hits, 1):
        name = _file_name(hit.id)
        try:
            if root:
                found = _from_folder(hit, root, name)
            else:
                found = {PurePosixPath(name).with_suffix(".jpg").name: thumbnail(hit.metadata)}
        except (OSError, ValueError) as error:
            print(plain(f"samclip: {hit.id}: {error}"), file=sys.stderr)
            continue
        for file, content in found.items():
            written.append(out / f"{number:03d}-{file}")
            written[-1].write_bytes(content)
    listed = [
        {**row, "segmentation": hit.mask.rle} if hit.mask else row
        for row, hit in zip(rows, hits, strict=True)
    ]
    written.append(out / "hits.json")
    written[-1].write_text(formats.document(listed, model) + "\n")
    return written


def without_thumbnail(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that people read; a text under the thumbnail's key is one of these."""
    return {
        key: text
        for key, text in metadata.items()
        if key != THUMBNAIL or not text.startswith(PREFIX)
    }


def _file_name(id: str) -> str:
    """Return a file name for an id that file systems take: printable, of at most 100 bytes."""
    name = "".join(filter(str.isprintable, PureWindowsPath(id).name))
    return name.encode()[-100:].decode(errors="ignore") or "image"


def thumbnail(metadata: Mapping[str, str]) -> bytes:
    """Return the small picture of an indexed image. Raises ValueError if there is none."""
    encoded = metadata.get(THUMBNAIL, "")
    if not encoded.startswith(PREFIX):
        raise ValueError(
            "the collection has no thumbnail of it: --root FOLDER names the folder with the images"
        )
    try:
        return base64.b64decode(encoded.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the thumbnail is damaged: {error}") from error


def _from_folder(hit: Hit, root: Path, name: str) -> dict[str, bytes]:
    """Return the image, and the object that was found in it, as files. Raises OSError, ValueError.

    Ids come from the service: a path that leads out of the folder is refused.
    """
    path = PurePosixPath(hit.id)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the id leads out of {root}: nothing was copied")
    encoded = encode_image(root / path)
    files = {name: encoded}
    if hit.mask and hit.mask.area:
        cutout = replace(hit.mask, photograph=encoded).cutout()
        files[PurePosixPath(name).with_suffix(".cutout.png").name] = encode_image(cutout)
    return files
