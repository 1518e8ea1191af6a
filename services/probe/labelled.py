"""Labelled pictures: a folder per class, a CSV of files and labels, COCO's JSON of boxes, or a
collection whose metadata have labels.

D width of the embeddings.
"""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from samclip import Client
from samclip.cli import answers, saved
from samclip.files import is_url
from samclip.images import Source, image_files
from samclip.patience import patiently
from samclip.types import Box, ListedItem

from samclip_core import guarded
from samclip_core.answers.probe import MAX_CLASSES

LEAST = 2
"""Pictures of a class: cross-validation fits on some and judges by others."""
PAGE = 500
"""Items of a collection in one reply."""
FORMS = (
    "a folder with a subfolder per class; or a CSV file with lines of file,label; or COCO's JSON, "
    "for boxes in pictures. Files are relative to the CSV or JSON"
)
_HEADERS = ("file", "image", "path", "filename")
_MOST_VALUES = 2**22
"""Of COCO's JSON: twice those of the 37,000 outlines of its validation photographs."""
_NOT_READ = (
    *(csv.Error, UnicodeDecodeError, json.JSONDecodeError),
    *(KeyError, TypeError, AttributeError),
)
"""What files of another form raise."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with its label; or with the labels of the boxes in it, in pixels.

    Of a collection, it has its embedding, and the source is its thumbnail.
    """

    source: Source
    labels: Sequence[str]
    boxes: Sequence[Box] = ()
    vector_D: NDArray[np.float32] | None = None


def read(given: Path) -> list[Picture]:
    """Return the pictures of a folder, a .csv or a .json file. Raises OSError and ValueError."""
    reader = _of_coco if given.suffix.lower() == ".json" else _of_csv
    try:
        found = list(_of_folders(given) if given.is_dir() else reader(given))
    except _NOT_READ as error:
        raise ValueError(f"{given}: {type(error).__name__}: {error}. Expected {FORMS}") from error
    if not found:
        raise ValueError(f"{given} has no labelled pictures: expected {FORMS}")
    return found


def _of_folders(folder: Path) -> Iterator[Picture]:
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            for source in image_files([str(place)]):
                yield Picture(source, [place.name])


def _of_csv(path: Path) -> Iterator[Picture]:
    rows = csv.reader(io.StringIO(guarded.read(path).decode("utf-8-sig"), newline=""))
    for row in rows:
        if not row or (rows.line_num == 1 and row[0].strip().lower() in _HEADERS):
            continue
        if len(row) != 2 or not all(cell.strip() for cell in row):
            raise ValueError(f"{path}, line {rows.line_num}: {row[:3]!r:.80}, expected file,label")
        name, label = (cell.strip() for cell in row)
        yield Picture(_source(path, name), [label])


def _of_coco(path: Path) -> Iterator[Picture]:
    """Yield each picture that has boxes; those of crowds are left out."""
    content = guarded.read_json(path, values=_MOST_VALUES)
    names = {each["id"]: str(each["name"]) for each in content["categories"]}
    parts = defaultdict[Any, list[tuple[str, Box]]](list)
    for each in content["annotations"]:
        try:
            x, y, width, height = map(float, each["bbox"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: annotation {each.get('id')!r} has no bbox of four numbers: expected "
                '"bbox": [x_min, y_min, width, height] in pixels, also beside a segmentation'
            ) from error
        if not each.get("iscrowd"):
            label = names[each["category_id"]]
            parts[each["image_id"]].append((label, (x, y, x + width, y + height)))
    for each in content["images"]:
        if found := parts[each["id"]]:
            labels, boxes = zip(*found, strict=True)
            yield Picture(_source(path, str(each["file_name"])), labels, boxes)


def of_collection(client: Client, name: str, key: str) -> list[Picture]:
    """Return the items of a collection that have a label under a key of their metadata.

    The client has had a reply. Raises ServiceError, and ValueError for another model's collection
    or if no item has a label.
    """
    (about,) = patiently(lambda: client.describe(name))
    if client.model and about.model_digest != client.model.digest:
        raise ValueError(
            f"collection {name} is of another model than {client.model.name}: name its model with "
            "--model"
        )
    found, after = list[Picture](), ""
    with answers.shown("reading", about.count) as advance:
        page_of = partial(client.list_items, name, limit=PAGE, vectors=True)
        while page := patiently(partial(page_of, after=after)):
            for item in page:
                label = item.metadata.get(key, "").strip()
                if item.vector is not None and label:  # else it has just been deleted
                    found.append(Picture(_thumbnail(item), [label], vector_D=item.vector))
            advance(len(page))
            after = page[-1].id
    if not found:
        raise ValueError(f"no item of collection {name} has the metadata {key!r}")
    return found


def _thumbnail(item: ListedItem) -> Source:
    """Return the source of an item: the picture in its metadata, or nothing that can be read."""
    with suppress(ValueError):
        return Source(item.id, image=saved.thumbnail(item.metadata))
    return Source(item.id, problem="no thumbnail")


def _source(path: Path, name: str) -> Source:
    """Return the source of a name in a file: relative to the folder of the file."""
    return Source(name if is_url(name) else str(path.parent / name), name)


def count(pictures: Sequence[Picture]) -> Counter[str]:
    return Counter(label for picture in pictures for label in {*picture.labels})


def check(count: Counter[str]) -> list[str]:
    """Return the classes in order of name. Raises ValueError unless each has enough pictures."""
    for label in count:
        if not label.strip() or not label.isprintable():
            raise ValueError(f"{label!r} is no name of a class: expected printable text")
    if few := sorted(label for label in count if count[label] < LEAST):
        named = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise ValueError(
            f"fewer than {LEAST} different readable pictures of {named}: add some, or leave it out"
        )
    if not 2 <= len(count) <= MAX_CLASSES:
        raise ValueError(f"{len(count)} classes: expected 2 to {MAX_CLASSES:,}")
    return sorted(count)
