"""Data sets that programs train with, in the forms of COCO and of YOLO."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from samclip.cli.formats import Answer, Writer, as_json
from samclip.errors import plain
from samclip.types import Mask, Model

UNNAMED = "object"
"""The category of masks without a label."""


def _number(names: list[str], label: str) -> int:
    """Return the number of a category: ``names`` has those of the request, then others as found."""
    name = label or UNNAMED
    if name not in names:
        names.append(name)
    return names.index(name)


class Coco(Writer):
    """One document in COCO's format for instance segmentation, printed at the end."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._names = [*dict.fromkeys(labels)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, answer: Answer) -> None:
        if answer.photo is None or answer.photo.info is None:
            return
        info, image_id = answer.photo.info, len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "file_name": answer.name,
                "width": info.width,
                "height": info.height,
            }
        )
        for mask in answer.masks:
            category_id = _number(self._names, mask.label) + 1
            annotation = mask.to_coco(image_id=image_id, category_id=category_id)
            self._annotations.append({"id": len(self._annotations) + 1, **annotation})

    def close(self, model: Model | None) -> None:
        content = {
            "info": {"description": f"masks by {model.name} ({model.digest})" if model else ""},
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": name}
                for number, name in enumerate(self._names, 1)
            ],
        }
        print(as_json(content))


class Yolo(Writer):
    """A folder that ``yolo segment train data=FOLDER/data.yaml`` reads; printed are its files.

    ``data.yaml`` comes first, and again with each name that is found later: an interrupted run
    leaves a data set.
    """

    streams = True

    def __init__(self, labels: Sequence[str], folder: Path) -> None:
        self._names, self._folder = [*dict.fromkeys(labels)], folder
        self._described: list[str] | None = None

    def add(self, answer: Answer) -> None:
        if answer.photo is None:
            return
        lines = [self._line(mask) for mask in answer.masks if mask.area]
        suffix = PurePosixPath(answer.name).suffix or ".jpg"  # readers look at the content
        path = f"/images/{answer.stem}"
        labels = "/labels/".join(path.rsplit("/images/", 1))  # where YOLO looks for them
        self._describe()
        self._write(f"{path[1:]}{suffix}", answer.photo.encoded)
        self._write(f"{labels[1:]}.txt", "".join(lines).encode())

    def _line(self, mask: Mask) -> str:
        height, width = mask.rle["size"]
        outline_K2 = joined(mask.polygons) / np.array([width, height])
        numbers = " ".join(f"{number:.6g}" for number in outline_K2.flatten().tolist())
        return f"{_number(self._names, mask.label)} {numbers}\n"

    def close(self, model: Model | None) -> None:
        self._describe()

    def _describe(self) -> None:
        """Write data.yaml, unless it has all names."""
        if self._described == self._names:
            return
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
            for number, name in enumerate(self._names)
        )
        names = f"\n{names}" if names else " {}\n"
        content = f"train: images\nval: images\nnames:{names}"
        self._write("data.yaml", content.encode(), known=self._described is not None)
        self._described = [*self._names]

    def _write(self, name: str, content: bytes, known: bool = False) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if not known:
            print(plain(str(path)), flush=True)


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return one ring (K, 2) that by the even-odd rule covers the same pixels as all rings.

    YOLO has one outline per object: the others are reached from its start by a line, there and
    back, which has no area.
    """
    first = rings[0]
    start = first[:1]
    parts = [first]
    for ring in rings[1:]:
        parts += [start, ring, ring[:1]]
    return np.concatenate([*parts, start] if len(rings) > 1 else parts)
