"""Layouts in which data sets are published: folders, lists, label maps, COCO's files.

A reader per layout, whatever the set: ``public_sets`` has a row for each set. Nothing is downloaded
or converted; class names come from files of the data set where it has them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samclip_core import guarded
from samclip_core.io.image import SUFFIXES
from training.evaluation.published_names import (
    categories,
    folder_names,
    in_order,
    lines,
    read_json,
    spaced,
)


class Mapped(NamedTuple):
    """An image's file content and its label map (integers H×W), both read lazily.

    ``files`` are both files, if they are files.
    """

    read: Callable[[], bytes]
    labels: Callable[[], NDArray[np.integer]]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Classified:
    """Images, each with the index of its class in ``names``."""

    pictures: list[tuple[Path, int]]
    names: list[str]


@dataclass(frozen=True)
class Captioned:
    """Images, each with all its captions."""

    pictures: list[tuple[Path, list[str]]]


@dataclass(frozen=True)
class Boxed:
    """Images with their ids in ``content``, COCO's or LVIS's annotations of instances at ``path``.

    ``federated``: as in LVIS, only some categories were looked for in each image.
    """

    pictures: list[tuple[Path, int]]
    path: Path
    content: dict[str, Any] = field(repr=False)
    federated: bool = False


@dataclass(frozen=True)
class LabelledSet:
    """Images with label maps, and the class name of each value.

    Other values are ignored, except ``background``, which means none of the classes. ``prompts``
    are those of a published protocol: background, each class, then words that mean background.
    """

    name: str
    classes: dict[int, str]
    pictures: list[Mapped]
    background: int | None = None
    prompts: tuple[str, ...] = ()

    def values(self, background: bool) -> list[int]:
        """Return the evaluated values; the background comes first if requested and known."""
        if background and self.background is not None:
            return [self.background, *self.classes]
        return list(self.classes)


Content = Classified | Captioned | Boxed | LabelledSet
Read = Callable[[Path, str], Content]
"""A reader of a folder and one of its splits."""


def read_annotations(path: Path) -> dict[str, Any]:
    """Return images and annotations in COCO's format.

    Raises ValueError, which names the file, if one is missing or an annotation is of another image.
    """
    content = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no {key!r}: expected COCO's format")
    known = {image["id"] for image in content["images"]}
    strange = [a["image_id"] for a in content["annotations"] if a["image_id"] not in known]
    if strange:
        raise ValueError(
            f"{path}: {len(strange)} annotations are of images that it does not list, the first "
            f"of {strange[0]!r}: expected the file as it is published"
        )
    return content


def captions(file: str, root: Path, part: str) -> Captioned:
    """Read captions in COCO's format."""
    content = read_annotations(root / file.format(part=part))
    found: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation["caption"])
    images = [image for image in content["images"] if found[image["id"]]]
    folder = root / f"{part}2017"
    return Captioned([(folder / image["file_name"], found[image["id"]]) for image in images])


def karpathy(file: str, folder: str, root: Path, part: str) -> Captioned:
    """Read a split of Karpathy's, ``test`` for validation; COCO's images name their own folders."""
    split = "test" if part == "val" else part
    records = [r for r in read_json(root / file)["images"] if r["split"] == split]
    return Captioned(
        [
            (
                root / record.get("filepath", folder) / record["filename"],
                [sentence["raw"] for sentence in record["sentences"]],
            )
            for record in records
        ]
    )


def instances(file: str, federated: bool, root: Path, part: str) -> Boxed:
    """Read COCO's or LVIS's instances; the images are in the folder that their URL ends with."""
    path = root / file.format(part=part)
    content = read_annotations(path)
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)  # LVIS has no crowds
    pictures = [
        (root.joinpath(*_place(image, f"{part}2017")), image["id"])
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]
    return Boxed(pictures, path, content, federated)


def _place(image: dict[str, Any], folder: str) -> list[str]:
    """Return folder and name of an image. LVIS gives its URL alone: it divides COCO differently."""
    if "file_name" in image:
        return [folder, image["file_name"]]
    return str(image["coco_url"]).split("/")[-2:]


def read_map(path: Path) -> NDArray[np.integer]:
    """Return the values of an indexed or greyscale PNG, H×W."""
    with guarded.open_regular(path) as file, Image.open(file) as image:
        return np.array(image)


@dataclass(frozen=True)
class Maps:
    """Label maps beside their photographs: VOC's layout, ADE20K's and that of COCO-Stuff.

    ``picture`` and ``labels`` are paths with ``{stem}`` and ``{part}``, ``names`` reads the class
    of each value. ``stems`` is the file that lists the split, one stem per line or COCO's images;
    without it, the split is all maps of the folder.
    """

    name: str
    picture: str
    labels: str
    names: Callable[[Path], dict[int, str]]
    stems: str = ""
    background: int | None = None
    prompts: tuple[str, ...] = ()

    def __call__(self, root: Path, part: str) -> LabelledSet:
        pictures = [
            _mapped(*(root / p.format(stem=stem, part=part) for p in (self.picture, self.labels)))
            for stem in self._listed(root, part)
        ]
        return LabelledSet(self.name, self.names(root), pictures, self.background, self.prompts)

    def _listed(self, root: Path, part: str) -> list[str]:
        path = root / self.stems.format(part=part)
        if path.suffix == ".json":
            return [Path(image["file_name"]).stem for image in read_json(path)["images"]]
        if self.stems:
            return [line.split()[0] for line in lines(path)]
        folder = (root / self.labels.format(part=part, stem="")).parent
        return sorted(path.stem for path in folder.glob("*.png"))


def _mapped(picture: Path, label_map: Path) -> Mapped:
    files = picture, label_map
    return Mapped(partial(guarded.read, picture), partial(read_map, label_map), files)


def panoptic(root: Path, part: str) -> LabelledSet:
    """Read COCO panoptic: 133 classes; the colour of a pixel encodes its segment's id."""
    path = root / f"annotations/panoptic_{part}2017.json"
    content, pictures = read_annotations(path), []
    for annotation in content["annotations"]:
        label_map = path.with_suffix("") / annotation["file_name"]
        picture = root / f"{part}2017/{label_map.stem}.jpg"
        labels = partial(_category_map, label_map, annotation["segments_info"])
        pictures.append(Mapped(partial(guarded.read, picture), labels, (picture, label_map)))
    return LabelledSet("coco_panoptic", categories(path), pictures)


def _category_map(path: Path, segments: list[dict[str, Any]]) -> NDArray[np.integer]:
    rgb_HW3 = read_map(path).astype(np.int32)
    ids_HW = rgb_HW3 @ np.array([1, 256, 65536], np.int32)
    values, inverse_HW = np.unique(ids_HW, return_inverse=True)
    category = {segment["id"]: segment["category_id"] for segment in segments}
    return np.array([category.get(int(v), 0) for v in values])[inverse_HW].reshape(ids_HW.shape)


def listed(root: Path, part: str) -> Classified:
    """Read Places365's ``val_256/`` with a list of each image's class.

    Names are those of the file without the letter's folder: ``/a/airfield 0``.
    """
    path, images = root / "categories_places365.txt", root / f"places365_{part}.txt"
    named = {int(line.split()[1]): line.split()[0][3:] for line in lines(path)}
    names = [spaced(name) for name in in_order(path, named, 0).values()]
    rows = [line.split() for line in lines(images)]
    if wrong := [row for row in rows if not 0 <= int(row[1]) < len(names)]:
        raise ValueError(f"{images}: {' '.join(wrong[0])} is a class that {path} does not name")
    folder = root / f"{part}_256"
    return Classified([(folder / name, int(index)) for name, index in rows], names)


def class_folders(place: str, root: Path, part: str = "") -> Classified:
    """Read a set with one folder per class, in their order: ImageNet, ImageNet-v2 or custom.

    Names come from the user's ``OWN_NAMES``, JSON ``{folder: name}`` in the folder or its parent.
    Without it, ImageNet's folders (WordNet ids, or v2's 0 to 999) get the names that CLIP is
    evaluated with, and other folders are named after themselves. Hidden folders are no classes.
    Raises FileNotFoundError if the folder is empty or other WordNet ids have no names, and
    ValueError if one folder has none, or is named unlike the others.
    """
    folder = root / place
    keys = [child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."]
    keys.sort(key=lambda key: (int(key), key) if key.isdecimal() else (0, key))
    if not keys:
        raise FileNotFoundError(f"{folder} has no subfolders: expected one per class")
    names = folder_names(folder, keys)
    pictures = [
        (path, index)
        for index, key in enumerate(keys)
        for path in sorted((folder / key).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return Classified(pictures, names)
