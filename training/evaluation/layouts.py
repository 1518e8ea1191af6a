"""Public data sets in their published layouts: images with a class, captions or a label map.

Nothing is downloaded or converted; class names come from files of the data set where it has them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samclip_core import guarded
from samclip_core.io.image import SUFFIXES

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip
VOC_PROMPTS = (
    "background", *VOC_CLASSES[:10], "table", *VOC_CLASSES[11:19], "television monitor",
    "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup",
    "door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain",
    "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky",
    "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip
"""CLIPpy's prompts: background, the classes in its words, then 39 words that mean background.

From the list in its published evaluation (github.com/kahnchana/clippy, evaluation/datasets.py).
"""
V2_FOLDERS = [str(index) for index in range(1000)]
OWN_NAMES = "classes.json"


class Classified(NamedTuple):
    """Images, each with the index of its class in ``names``."""

    pictures: list[tuple[Path, int]]
    names: list[str]


class Captioned(NamedTuple):
    """The path of an image and all its captions."""

    path: Path
    captions: list[str]


class Mapped(NamedTuple):
    """An image's file content and its label map (integers H×W), both read lazily."""

    read: Callable[[], bytes]
    labels: Callable[[], NDArray[np.integer]]


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


_MOST_BYTES, _MOST_VALUES = 2**30, 2**27
"""Of a file of annotations: above those of the outlines of COCO's training photographs."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, or ValueError that names the file."""
    try:
        return guarded.read_json(path, _MOST_BYTES, _MOST_VALUES)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def captioned(root: Path) -> list[Captioned]:
    """Read the captions of COCO's validation photographs."""
    content = read_json(root / "annotations/captions_val2017.json")
    captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        Captioned(root / "val2017" / image["file_name"], captions[image["id"]])
        for image in content["images"]
        if captions[image["id"]]
    ]


def read_map(path: Path) -> NDArray[np.integer]:
    """Return the values of an indexed or greyscale PNG, H×W."""
    with guarded.open_regular(path) as file, Image.open(file) as image:
        return np.array(image)


def _mapped(picture: Path, label_map: Path) -> Mapped:
    return Mapped(partial(guarded.read, picture), partial(read_map, label_map))


def voc(root: Path, part: str = "val") -> LabelledSet:
    """Read Pascal VOC 2012 (``root`` is VOC2012): 20 classes, 0 background, 255 outlines."""
    stems = guarded.read(root / f"ImageSets/Segmentation/{part}.txt").decode().split()
    pictures = [
        _mapped(root / f"JPEGImages/{stem}.jpg", root / f"SegmentationClass/{stem}.png")
        for stem in stems
    ]
    return LabelledSet("voc", dict(enumerate(VOC_CLASSES, 1)), pictures, 0, VOC_PROMPTS)


def ade20k(root: Path, part: str = "validation") -> LabelledSet:
    """Read ADE20K (``root`` is ADEChallengeData2016): 150 classes, 0 is ignored."""
    classes = {}
    for line in guarded.read(root / "objectInfo150.txt").decode().splitlines()[1:]:
        fields = line.split("\t")
        classes[int(fields[0])] = fields[-1].split(",")[0].strip()
    maps = sorted((root / "annotations" / part).glob("*.png"))
    pictures = [_mapped(root / f"images/{part}/{path.stem}.jpg", path) for path in maps]
    return LabelledSet("ade20k", classes, pictures)


def coco_panoptic(root: Path) -> LabelledSet:
    """Read COCO panoptic: 133 classes; the colour of a pixel encodes its segment's id."""
    content = read_json(root / "annotations/panoptic_val2017.json")
    maps = root / "annotations/panoptic_val2017"
    pictures = []
    for annotation in content["annotations"]:
        path = maps / annotation["file_name"]
        picture = root / f"val2017/{path.stem}.jpg"
        labels = partial(_category_map, path, annotation["segments_info"])
        pictures.append(Mapped(partial(guarded.read, picture), labels))
    classes = {c["id"]: c["name"] for c in content["categories"]}
    return LabelledSet("coco_panoptic", classes, pictures)


def _category_map(path: Path, segments: list[dict[str, Any]]) -> NDArray[np.integer]:
    rgb_HW3 = read_map(path).astype(np.int32)
    ids_HW = rgb_HW3 @ np.array([1, 256, 65536], np.int32)
    values, inverse_HW = np.unique(ids_HW, return_inverse=True)
    category = {segment["id"]: segment["category_id"] for segment in segments}
    return np.array([category.get(int(v), 0) for v in values])[inverse_HW].reshape(ids_HW.shape)


def class_folders(folder: Path) -> Classified:
    """Read a set with one folder per class, in their order: ImageNet, ImageNet-v2 or custom.

    Names come from the user's ``OWN_NAMES``, JSON ``{folder: name}`` in the folder or its parent.
    Without it, ImageNet's folders (WordNet ids, or v2's 0 to 999) get the names that CLIP is
    evaluated with, and other folders are named after themselves. Hidden folders are no classes.
    Raises FileNotFoundError if the folder is empty or other WordNet ids have no names, and
    ValueError if one folder has none, or is named unlike the others.
    """
    keys = [child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."]
    keys.sort(key=lambda key: (int(key), key) if key.isdecimal() else (0, key))
    if not keys:
        raise FileNotFoundError(f"{folder} has no subfolders: expected one per class")
    names = _folder_names(folder, keys)
    pictures = [
        (path, index)
        for index, key in enumerate(keys)
        for path in sorted((folder / key).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return Classified(pictures, names)


def _folder_names(folder: Path, keys: list[str]) -> list[str]:
    for path in (folder / OWN_NAMES, folder.parent / OWN_NAMES):
        if path.exists():
            table = read_json(path)
            if missing := [key for key in keys if key not in table]:
                raise ValueError(f"{path} has no name for the folder {missing[0]}")
            return [table[key].replace("_", " ") for key in keys]
    wnids = {key for key in keys if re.fullmatch(r"n\d{8}", key)}
    known = wnids or set(V2_FOLDERS).intersection(keys)
    others = [key for key in keys if key not in known]
    if others and (wnids or len(known) == len(V2_FOLDERS)):
        raise ValueError(
            f"{folder} has {len(known)} folders named like {min(known)!r}, and {others[0]!r}: "
            f"expected one folder per class. Remove the other ones, or name every class in "
            f"{OWN_NAMES}"
        )
    if not wnids and keys != V2_FOLDERS:
        return [re.sub("[-_/]", " ", key) for key in keys]
    curated = _imagenet_names()
    if keys == V2_FOLDERS:
        return list(curated.values())
    if not wnids <= curated.keys():
        raise FileNotFoundError(f"no names for the WordNet ids in {folder}: put {OWN_NAMES} there")
    return [curated[key] for key in keys]


def _imagenet_names() -> dict[str, str]:
    """Return ImageNet's 1,000 names that CLIP is evaluated with, by WordNet id, in order."""
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds to import
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))
