"""The paper's public data sets in miniature: two drawings in each published layout."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.coco_set import write, write_coco
from tests.photographs import draw, jpg, png

DRAWINGS = [draw(seed, 48, 64) for seed in range(2)]
PICTURES = [jpg(drawing.image_HW3) for drawing in DRAWINGS]
WNIDS = ("n01440764", "n02012849")


def imagenet(root: Path) -> None:
    for part in ("train", "val"):
        for wnid, picture in zip(WNIDS, PICTURES, strict=True):
            write(root / part / wnid / "1.JPEG", picture)


def imagenet_v2(root: Path) -> None:
    for index in range(1000):
        (root / str(index)).mkdir()
    for index, picture in zip((2, 10), PICTURES, strict=True):
        write(root / str(index) / "x.jpeg", picture)


def places365(root: Path) -> None:
    """The second photograph is of the first class, so that lines are not taken for classes."""
    for i, picture in enumerate(PICTURES, 1):
        write(root / f"val_256/Places365_val_0000000{i}.jpg", picture)
    lines = [f"Places365_val_0000000{i}.jpg {index}" for i, index in ((1, 1), (2, 0))]
    write(root / "places365_val.txt", "\n".join(lines) + "\n")
    write(root / "categories_places365.txt", "/a/airfield 0\n/a/airplane_cabin 1\n")


def karpathy(file: str, folder: str, filepath: dict[str, str]) -> Callable[[Path], None]:
    """Return the writer of a split of Karpathy's, whose last photograph is for training."""

    def written(root: Path) -> None:
        records = [
            {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"the dog {i}"}]}
            | filepath
            for i, split in enumerate(("test", "test", "restval"))
        ]
        write(root / file, {"images": records})
        for i, picture in enumerate(PICTURES):
            write(root / folder / f"{i}.jpg", picture)

    return written


def coco(root: Path) -> None:
    write_coco(root, DRAWINGS)


def write_palette(path: Path, labels_HW: np.ndarray) -> None:
    """Write an indexed PNG with a palette, as in VOC."""
    image = Image.fromarray(labels_HW).convert("P")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pascal(maps: str, lists: Sequence[str], names: str = "") -> Callable[[Path], None]:
    """Return the writer of one of the Pascal sets' layouts: 0 is the background."""

    def written(root: Path) -> None:
        for part in lists:
            write(root / f"ImageSets/{part}.txt", "0\n1\n")
        for i, (picture, drawing) in enumerate(zip(PICTURES, DRAWINGS, strict=True)):
            write(root / f"JPEGImages/{i}.jpg", picture)
            write_palette(root / f"{maps}/{i}.png", drawing.labels_HW)
        if names:
            write(root / "59_labels.txt", names)

    return written


def ade20k(root: Path) -> None:
    rows = "\n".join(f"{value}\t0\t0\t0\t{name}" for value, name in enumerate("abc", 1))
    write(root / "objectInfo150.txt", f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n")
    for part in ("training", "validation"):
        write(root / f"images/{part}/1.jpg", PICTURES[0])
        write(root / f"annotations/{part}/1.png", png(DRAWINGS[0].labels_HW))


WRITERS: dict[str, Callable[[Path], None]] = {
    "imagenet": imagenet,
    "imagenet-v2": imagenet_v2,
    "places365": places365,
    "flickr30k": karpathy("dataset_flickr30k.json", "flickr30k-images", {}),
    "coco-captions": karpathy("dataset_coco.json", "val2014", {"filepath": "val2014"}),
    "voc": pascal("SegmentationClass", ["Segmentation/train", "Segmentation/val"]),
    "voc-context": pascal(
        "59_context_labels", ["Main/val"], "0: background\n1: table\n3: car\n2: tvmonitor\n"
    ),
    "ade20k": ade20k,
    **dict.fromkeys(("coco-boxes", "lvis-boxes", "coco-stuff", "coco-panoptic"), coco),
}
"""The writer of each set's layout; of two layouts, the first one."""
