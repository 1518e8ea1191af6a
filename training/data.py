"""Photographs with masks, classes and captions, read from WebDataset shards.

A sample is what the files of one key say: the photograph's bytes, its json, and where there are
some, label maps. The whole edge mixture fits in memory as encoded files.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

IGNORED = {"labelmefacade": {0}, "camvid": {255}, "ccp_clothing": set(), "coco_multi": set()}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One photograph and what is known of it; absent parts are empty."""

    key: str
    source: str
    encoded: bytes
    info: dict[str, Any]
    label_png: bytes = b""
    instance_png: bytes = b""
    class_index: int = -1


def read_shards(root: Path, source: str, split: str) -> list[Sample]:
    """All samples of ``root/source/split-*.tar``, in order of their shards."""
    paths = sorted((root / source).glob(f"{split}-*.tar"))
    if not paths:
        raise FileNotFoundError(f"no shards {split}-*.tar in {root / source}")
    return [_sample(source, key, files) for path in paths for key, files in _grouped(path)]


def _grouped(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The members of a shard by key: they stand side by side, the extension after the first dot."""
    key, files = "", dict[str, bytes]()
    with tarfile.open(path) as tar:
        for member in tar:
            stem, _, extension = member.name.partition(".")
            if stem != key and files:
                yield key, files
                files = {}
            key = stem
            content = tar.extractfile(member)
            files[extension] = content.read() if content else b""
    if files:
        yield key, files


def _sample(source: str, key: str, files: dict[str, bytes]) -> Sample:
    return Sample(
        key=key,
        source=source,
        encoded=files["jpg"],
        info=json.loads(files["json"]),
        label_png=files.get("png", b""),
        instance_png=files.get("inst.png", b""),
        class_index=int(files.get("cls", b"-1")),
    )


def label_map(sample: Sample) -> np.ndarray:
    """The sample's map of class indices, uint8 H×W."""
    return np.array(Image.open(io.BytesIO(sample.label_png)))


def class_names(root: Path, source: str) -> dict[int, str]:
    """The names of a set's classes by their index; the indices to ignore are left out."""
    content = json.loads((root / source / "classes.json").read_text())
    ignored = set(content.get("ignore_ids", ()))
    return {c["id"]: c["name"] for c in content["classes"] if c["id"] not in ignored}


def regions(sample: Sample, min_area: int = 25) -> list[dict[str, Any]]:
    """Every region that somebody outlined, class-agnostic, as COCO RLE at the photograph's size."""
    if sample.source == "bsds500":
        instances = [i for a in sample.info["annotations"] for i in a["instances"]]
        return [i["segmentation"] for i in instances if i["area"] >= min_area]
    if sample.instance_png:
        ids_HW = np.array(Image.open(io.BytesIO(sample.instance_png)))
        masks = [ids_HW == value for value in np.unique(ids_HW) if value]
    elif sample.info.get("instances"):
        kept = [i for i in sample.info["instances"] if not i["iscrowd"]]
        return [i["segmentation"] for i in kept if i["area"] >= min_area]
    elif sample.label_png and sample.source != "coco_multi":
        masks = _components(label_map(sample), IGNORED[sample.source])
    else:
        masks = []
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return [rle for rle in encoded if coco_mask.area(rle) >= min_area]


def _components(labels_HW: np.ndarray, ignored: set[int], min_area: int = 100) -> list[np.ndarray]:
    """The connected parts of every class: where a map has no instances, its best guess at them."""
    parts = []
    for value in set(np.unique(labels_HW)) - ignored:
        count, parts_HW, stats, _ = cv2.connectedComponentsWithStats(
            (labels_HW == value).astype(np.uint8)
        )
        parts += [parts_HW == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= min_area]
    return parts


@dataclass(frozen=True)
class Frame:
    """A square cut of a photograph in the model frame, with masks to ask for.

    ``pixels_3SS`` uint8 RGB; ``masks_Pmm`` float, the share of each cell that the mask covers;
    ``valid`` the (height, width) that holds photograph.
    """

    pixels_3SS: np.ndarray
    masks_Pmm: np.ndarray
    valid: tuple[int, int]


def cut(
    sample: Sample,
    rles: Sequence[dict[str, Any]],
    size: int,
    mask_size: int,
    random: np.random.Generator,
    scales: tuple[float, float] = (0.7, 1.7),
) -> Frame:
    """A random scale, place and flip of ``sample`` with as many of ``rles`` as stay visible.

    The longer side is scaled to ``scales`` times ``size``, and a ``size``×``size`` window cut out.
    """
    image_HW3 = np.array(Image.open(io.BytesIO(sample.encoded)).convert("RGB"))
    height, width = image_HW3.shape[:2]
    scale = size * random.uniform(*scales) / max(height, width)
    scaled_h, scaled_w = max(1, round(height * scale)), max(1, round(width * scale))
    y, x = (int(random.integers(max(side - size, 0) + 1)) for side in (scaled_h, scaled_w))
    valid = min(scaled_h, size), min(scaled_w, size)
    flip = bool(random.random() < 0.5)

    def place(array: np.ndarray, cells: int) -> np.ndarray:
        """Resize to the drawn scale, cut the window, flip, pad, and shrink to ``cells``."""
        resized = cv2.resize(array, (scaled_w, scaled_h), interpolation=cv2.INTER_AREA)
        window = resized[y : y + size, x : x + size]
        window = window[:, ::-1] if flip else window
        padding = [(0, size - window.shape[0]), (0, size - window.shape[1]), (0, 0)][: array.ndim]
        padded = np.pad(window, padding)
        return cv2.resize(padded, (cells, cells), interpolation=cv2.INTER_AREA)

    masks = [place(coco_mask.decode(rle).astype(np.float32), mask_size) for rle in rles]
    cells = valid[0] * valid[1] * (mask_size / size) ** 2
    kept = [mask for mask in masks if 5 < (mask > 0.5).sum() < 0.9 * cells]
    pixels_SS3 = place(image_HW3, size)
    return Frame(
        np.ascontiguousarray(pixels_SS3.transpose(2, 0, 1)),
        np.stack(kept) if kept else np.zeros((0, mask_size, mask_size), np.float32),
        valid,
    )
