"""Miniature photograph sets: drawn pictures in the layout of the real sets."""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.data.sample import Sample

COLOURS = {1: (220, 30, 30), 2: (30, 200, 40), 3: (40, 60, 230)}


@dataclass(frozen=True)
class Drawing:
    """Coloured rectangles on grey noise; ``labels_HW`` holds keys of COLOURS, 0 for noise."""

    image_HW3: np.ndarray
    labels_HW: np.ndarray

    @property
    def masks(self) -> list[np.ndarray]:
        return [self.labels_HW == label for label in np.unique(self.labels_HW) if label]


def draw(seed: int, height: int = 120, width: int = 160) -> Drawing:
    """Draw one rectangle of each colour, side by side and without overlap."""
    random = np.random.default_rng(seed)
    image_HW3 = random.integers(100, 140, (height, width, 3)).astype(np.uint8)
    labels_HW = np.zeros((height, width), np.uint8)
    column = width // len(COLOURS)
    for place, label in enumerate(random.permutation(list(COLOURS))):
        top, left = random.integers(5, 20, 2)
        rows = slice(top, height - random.integers(5, 20))
        columns = slice(place * column + left, (place + 1) * column - 5)
        labels_HW[rows, columns] = label
        image_HW3[rows, columns] = COLOURS[label]
    return Drawing(image_HW3, labels_HW)


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def instance(mask_HW: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"segmentation": rle(mask_HW), "area": int(mask_HW.sum())} | more


def png(array: np.ndarray) -> bytes:
    return _encoded(array, format="PNG")


def jpg(image_HW3: np.ndarray) -> bytes:
    return _encoded(image_HW3, format="JPEG", quality=95, subsampling=0)


def _encoded(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


def sample(source: str, **parts: Any) -> Sample:
    """Return a grey photograph with other parts of its sample."""
    grey = jpg(np.full((40, 60, 3), 128, np.uint8))
    return Sample(**{"key": "one", "source": source, "encoded": grey, "info": {}} | parts)


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write a tar in which the files of each key are adjacent, named key.extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_classes(folder: Path, names: Mapping[int, str], ignored: tuple[int, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"id": index, "name": name} for index, name in names.items()]
    content = {"ignore_ids": list(ignored), "classes": classes}
    (folder / "classes.json").write_text(json.dumps(content))


def outlined(drawing: Drawing, **info: Any) -> dict[str, bytes]:
    """Return a sample with a label map, as in camvid; undrawn pixels are void (255)."""
    labels_HW = np.where(drawing.labels_HW == 0, 255, drawing.labels_HW).astype(np.uint8)
    return {
        "jpg": jpg(drawing.image_HW3),
        "json": json.dumps(info).encode(),
        "png": png(labels_HW),
    }


def annotated(drawing: Drawing) -> dict[str, bytes]:
    """Return a sample with the regions of one human annotator, as in bsds500."""
    info = {"annotations": [{"instances": [instance(mask) for mask in drawing.masks]}]}
    return {"jpg": jpg(drawing.image_HW3), "json": json.dumps(info).encode()}


def things(drawing: Drawing) -> dict[str, bytes]:
    """Return a sample whose shapes are countable things, as in coco_multi."""
    info = {"instances": [instance(mask, iscrowd=0) for mask in drawing.masks]}
    return {"jpg": jpg(drawing.image_HW3), "json": json.dumps(info).encode()}


def write_training_sets(root: Path) -> None:
    """Write the inputs of the ``debug`` recipe: regions, photographs and the ImageNet names."""
    write_shard(
        root / "bsds500/train-00000.tar", {f"bsds_{i}": annotated(draw(i)) for i in range(3)}
    )
    write_shard(
        root / "camvid/train-00000.tar", {f"camvid_{i}": outlined(draw(10 + i)) for i in range(3)}
    )
    write_classes(root / "camvid", {i: f"colour {i}" for i in COLOURS})
    write_classes(root / "imagenet1k_sample", {i: f"thing {i}" for i in range(1000)})
