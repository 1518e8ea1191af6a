"""The public data sets of the paper's tables: a row for each, and a check of its files.

Before anything is measured, every file of a set is there and complete, and label maps are read,
which have the size of their photographs. A set with fewer photographs than were published says so.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from samclip_core import guarded
from samclip_core.errors import SamClipError
from samclip_core.io.image import ImageLimits, whole_size
from training.evaluation import parallel
from training.evaluation.layouts import (
    Content,
    LabelledSet,
    Mapped,
    Maps,
    Read,
    captions,
    class_folders,
    instances,
    karpathy,
    listed,
    panoptic,
)
from training.evaluation.published_names import colon_names, given_names, object_info, stuff_names
from training.evaluation.suite import limited

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip
FURTHER = (
    "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup",
    "door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain",
    "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky",
    "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip
"""The classes that Pascal Context has beside VOC's, in the order of CLIPpy's prompts."""
VOC_PROMPTS = (
    "background", *VOC_CLASSES[:10], "table", *VOC_CLASSES[11:19], "television monitor", *FURTHER,
)  # fmt: skip
"""CLIPpy's prompts: background, the classes in its words, then 39 words that mean background.

From the list in its published evaluation (github.com/kahnchana/clippy, evaluation/datasets.py).
"""


def _unspaced(name: str) -> str:
    return name.replace(" ", "")


_SPELT = {_unspaced(name): name for name in VOC_CLASSES}
"""VOC's names by their spelling in the files of Pascal Context."""
CONTEXT_CLASSES = tuple(sorted((*VOC_PROMPTS[1:20], "tv monitor", *FURTHER), key=_unspaced))
"""The 59 classes in the order in which mmsegmentation numbers them, by their files' spelling."""
AT_ONCE = 8  # files that are checked at a time: reading waits for the disk


class Layout(NamedTuple):
    """A layout of a set: what its folder holds, its reader, and the number of photographs.

    In ``needs``, paths with spaces between them, ``{part}`` stands for the split.
    """

    needs: str
    read: Read
    published: int

    def paths(self, part: str) -> list[str]:
        """Return what the folder of a split holds."""
        return self.needs.format(part=part).split()


class PublicSet(NamedTuple):
    """A public data set: its task, its layouts, the page that has it, and its protocol for --help.

    ``splits`` are its names of the parts for training and validation.
    """

    task: Literal["names", "captions", "boxes", "maps"]
    page: str
    protocol: str
    layouts: tuple[Layout, ...]
    splits: tuple[str, str] = ("train", "val")

    @property
    def about(self) -> str:
        """The layouts and the protocol."""
        layouts = (", ".join(layout.paths(self.splits[1])) for layout in self.layouts)
        return f"{' or '.join(filter(None, layouts))}; {self.protocol}"


def _folders(*places: str, count: int) -> tuple[Layout, ...]:
    return tuple(Layout(f"{at}/" if at else "", partial(class_folders, at), count) for at in places)


def _karpathy(name: str, *folders: str, count: int) -> tuple[Layout, ...]:
    file = f"dataset_{name}.json"
    return tuple(Layout(f"{file} {at}/", partial(karpathy, file, at), count) for at in folders)


_COCO = "https://cocodataset.org/#download"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_INSTANCES = "annotations/instances_{part}2017.json"
_CAPTIONS = "annotations/captions_{part}2017.json"
_CONTEXT = partial(Maps, "voc_context", "JPEGImages/{stem}.jpg", background=0)
_VOC_LIST = "ImageSets/Segmentation/{part}.txt"
_MM_LIST = "ImageSets/SegmentationContext/{part}.txt"

SETS: dict[str, PublicSet] = {
    "imagenet": PublicSet(
        "names", "https://image-net.org/download.php",
        "a folder per WordNet id; open_clip's class names and templates, table 1",
        _folders("val", "", count=50_000)),
    "imagenet-v2": PublicSet(
        "names", "https://github.com/modestyachts/ImageNetV2",
        "0/ to 999/, matched-frequency; as imagenet, table 1",
        _folders("val", "", count=10_000)),
    "places365": PublicSet(
        "names", "http://places2.csail.mit.edu/download.html", "365 scenes, table 1",
        (Layout("val_256/ places365_{part}.txt categories_places365.txt", listed, 36_500),
         *_folders("val", count=36_500))),
    "flickr30k": PublicSet(
        "captions", f"https://shannon.cs.illinois.edu/DenotationGraph and {_KARPATHY}",
        "Karpathy's test split; R@k, table 1",
        _karpathy("flickr30k", "flickr30k-images", "flickr30k_images", count=1_000)),
    "coco-captions": PublicSet(
        "captions", f"{_COCO} and {_KARPATHY}", "Karpathy's test split, or val2017; R@k, table 1",
        (*_karpathy("coco", "val2014", count=5_000),
         Layout(f"{_CAPTIONS} {{part}}2017/", partial(captions, _CAPTIONS), 5_000))),
    "coco-boxes": PublicSet(
        "boxes", _COCO, "--detections of ViTDet-B; mask AP by pycocotools, table 1",
        (Layout(f"{_INSTANCES} {{part}}2017/", partial(instances, _INSTANCES, False), 5_000),)),
    "lvis-boxes": PublicSet(
        "boxes", "https://www.lvisdataset.org/dataset",
        "--detections of ViTDet-B; mask AP by LVIS's rules, table 1",
        tuple(Layout(f"{path} val2017/ train2017/", partial(instances, path, True), 19_809)
              for path in ("annotations/lvis_v1_{part}.json", "lvis_v1_{part}.json"))),
    "voc": PublicSet(
        "maps", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        "VOC2012: 21 classes by CLIPpy's rule (the paper's, table 2) and by ours, 20 without",
        (Layout(f"{_VOC_LIST} JPEGImages/ SegmentationClass/", Maps(
            "voc", "JPEGImages/{stem}.jpg", "SegmentationClass/{stem}.png",
            partial(given_names, VOC_CLASSES), _VOC_LIST, 0, VOC_PROMPTS), 1_449),)),
    "voc-context": PublicSet(
        "maps", "https://cs.stanford.edu/~roozbeh/pascal-context",
        "VOC2010 with the authors' maps or mmsegmentation's: 59 classes, 60 with background; "
        "table 2",
        (Layout("59_context_labels/ 59_labels.txt ImageSets/Main/{part}.txt JPEGImages/", _CONTEXT(
            labels="59_context_labels/{stem}.png", stems="ImageSets/Main/{part}.txt",
            names=partial(colon_names, "59_labels.txt", _SPELT)), 5_105),
         Layout(f"SegmentationClassContext/ {_MM_LIST} JPEGImages/", _CONTEXT(
             labels="SegmentationClassContext/{stem}.png", stems=_MM_LIST,
             names=partial(given_names, CONTEXT_CLASSES)), 5_104))),
    "ade20k": PublicSet(
        "maps", "http://sceneparsing.csail.mit.edu",
        "ADEChallengeData2016: 150 classes, table 2",
        (Layout("objectInfo150.txt images/{part}/ annotations/{part}/", Maps(
            "ade20k", "images/{part}/{stem}.jpg", "annotations/{part}/{stem}.png",
            object_info), 2_000),),
        ("training", "validation")),
    "coco-stuff": PublicSet(
        "maps", "https://github.com/nightrome/cocostuff", "164k's labels: 171 classes, table 2",
        (Layout(f"{_INSTANCES} annotations/stuff_{{part}}2017.json stuffthingmaps/{{part}}2017/",
         Maps("coco_stuff", "{part}2017/{stem}.jpg", "stuffthingmaps/{part}2017/{stem}.png",
              stuff_names, _INSTANCES), 5_000),)),
    "coco-panoptic": PublicSet(
        "maps", _COCO, "133 classes, table 2",
        (Layout("annotations/panoptic_{part}2017.json annotations/panoptic_{part}2017/",
                panoptic, 5_000),)),
}  # fmt: skip


def layout_of(name: str, root: Path, split: int = 1) -> Layout | None:
    """Return the layout of a set that a folder has; ``split`` is 0 for training."""
    part = SETS[name].splits[split]
    for layout in SETS[name].layouts:
        if root.is_dir() and all((root / path).exists() for path in layout.paths(part)):
            return layout
    return None


def open_set(name: str, root: Path, limit: int | None = None, split: int = 1) -> Content:
    """Read a set, check the files of ``limit`` photographs, and say if it is not complete.

    Raises FileNotFoundError, which names the page and the layout, if the folder has no such set,
    and ValueError or OSError, which name the file, for one that is damaged.
    """
    row = SETS[name]
    part, layout = row.splits[split], layout_of(name, root, split)
    if layout is None:
        expected = " or ".join(
            ", ".join(layout.paths(part)) or "a folder per class" for layout in row.layouts
        )
        raise FileNotFoundError(f"no {name} in {root}: expected {expected}, from {row.page}")
    try:
        content: Any = layout.read(root, part)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root}: {', '.join(layout.paths(part))} are not as published ({error!r}): get them "
            f"again from {row.page}"
        ) from error
    found = len(content.pictures)
    if split and found != layout.published:
        print(
            f"{name}: {root} has {found:,} photographs; {layout.published:,} were published, and "
            "only figures of all of them compare with others'",
            file=sys.stderr,
        )
    if not found:
        raise ValueError(f"{root}: no photographs of {name}, from {row.page}")
    chosen: Content = replace(content, pictures=limited(content.pictures, limit))
    check(chosen)
    return chosen


def labelled(name: str, root: Path, limit: int | None, split: int = 1) -> LabelledSet:
    """Open a set with label maps."""
    content = open_set(name, root, limit, split)
    assert isinstance(content, LabelledSet)
    return content


def check(content: Content) -> None:
    """Raise OSError or ValueError, which name the file, unless all files are there and complete."""
    pictures = content.pictures
    few = [pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        parallel.shared(few, lambda some: [*pool.map(_check, some)], "files")


def _check(picture: Any) -> None:
    if not isinstance(picture, Mapped):
        _size(picture[0])
        return
    _check_sizes(picture.files)
    try:
        shape = picture.labels().shape
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{picture.files[1]} is no label map as published: {error!r}") from error
    if len(shape) != 2:
        raise ValueError(f"{picture.files[1]} has colours: expected the number of a class")


def _check_sizes(files: Sequence[Path]) -> None:
    (width, height), *others = map(_size, files)
    for path, other in zip(files[1:], others, strict=True):
        if other != (width, height):
            raise ValueError(
                f"{path} has {other[0]}×{other[1]} pixels, and {files[0]} {width}×{height}: "
                "expected a label for each pixel"
            )


def _size(path: Path) -> tuple[int, int]:
    """Return the size of a complete picture. Raises OSError, or ValueError that names the file."""
    encoded = guarded.read(path)
    try:
        return whole_size(encoded, ImageLimits())
    except SamClipError as error:
        raise ValueError(f"{path}: {error}") from error
