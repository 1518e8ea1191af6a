"""Read the label maps and outlined regions of samples, and cut square training frames."""

import io
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from samclip_core.io import image
from training.data.sample import BadSample, Sample, reading
from training.data.sources import open_source

__all__ = (
    "BadSample",
    "Frame",
    "Sample",
    "class_names",
    "classes",
    "cut",
    "imagenet_names",
    "label_map",
    "read_shards",
    "regions",
)

log = logging.getLogger(__name__)

IGNORED = {"labelmefacade": {0}, "camvid": {255}, "ccp_clothing": set(), "coco_multi": set()}


def read_shards(root: Path, source: str, split: str) -> list[Sample]:
    """Return all samples of a set in order; broken ones are skipped with a warning."""
    opened = open_source(str(root / source), split)
    samples = []
    for index in range(len(opened)):
        try:
            samples.append(opened[index])
        except BadSample as error:
            log.warning("skipped: %s", error)
    return samples


def label_map(sample: Sample) -> np.ndarray:
    """Return the sample's map of class indices, uint8 H×W. Raises BadSample if it is broken."""
    return _indices(sample, sample.label_png)


def _indices(sample: Sample, encoded: bytes) -> NDArray[Any]:
    with reading(sample.source, sample.key, "its label map is broken"):
        return np.array(Image.open(io.BytesIO(encoded)))


def classes(sample: Sample, indices: Collection[int]) -> dict[int, dict[str, Any]]:
    """Return the mask of each class of ``indices`` in the sample's label map, as COCO RLE."""
    labels_HW = label_map(sample)
    present = sorted(set(np.unique(labels_HW).tolist()) & set(indices))
    masks = [np.asfortranarray((labels_HW == index).astype(np.uint8)) for index in present]
    return dict(zip(present, map(coco_mask.encode, masks), strict=True))


def class_names(root: Path, source: str) -> dict[int, str]:
    """Return the names of a set's classes by index, without the ignored indices."""
    content = json.loads((root / source / "classes.json").read_text())
    ignored = set(content.get("ignore_ids", ()))
    return {c["id"]: c["name"] for c in content["classes"] if c["id"] not in ignored}


def imagenet_names(data: Path) -> list[str]:
    """Return the 1,000 ImageNet class names in the classifier's order."""
    names = class_names(data, "imagenet1k_sample")
    return [names[index] for index in range(len(names))]


def regions(sample: Sample, min_area: int = 25) -> list[dict[str, Any]]:
    """Return every outlined region, class-agnostic, as COCO RLE at the photograph's size.

    Also reads SA-1B's annotations. Raises BadSample if the regions are malformed.
    """
    if sample.instance_png:
        ids_HW = _indices(sample, sample.instance_png)
        masks = [ids_HW == value for value in np.unique(ids_HW) if value]
    elif sample.info.get("annotations") or sample.info.get("instances"):
        with reading(sample.source, sample.key, "its regions are broken"):
            return [_rle(i["segmentation"]) for i in _outlined(sample) if i["area"] >= min_area]
    elif sample.label_png and sample.source in IGNORED and sample.source != "coco_multi":
        masks = _components(label_map(sample), IGNORED[sample.source])
    else:
        masks = []
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return [rle for rle in encoded if coco_mask.area(rle) >= min_area]


def _outlined(sample: Sample) -> list[dict[str, Any]]:
    """Return COCO's instances without crowds, or the annotations of SA-1B or BSDS500."""
    if "annotations" in sample.info:
        return [i for a in sample.info["annotations"] for i in a.get("instances", [a])]
    return [i for i in sample.info["instances"] if not i["iscrowd"]]


def _rle(segmentation: dict[str, Any]) -> dict[str, Any]:
    """Return a checked compressed COCO RLE, because pycocotools does not validate its input."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
    # Each character is "0" plus six bits; the sixth bit marks a number that continues.
    if not len(digits) or digits.min() < 48 or digits.max() > 111 or (digits[-1] - 48) & 32:
        raise ValueError("an RLE is damaged or truncated")
    return {"size": [int(height), int(width)], "counts": counts}


def _components(labels_HW: np.ndarray, ignored: set[int], min_area: int = 100) -> list[np.ndarray]:
    """Return the connected components of every class, which stand in for instances."""
    parts = []
    for value in set(np.unique(labels_HW)) - ignored:
        count, parts_HW, stats, _ = cv2.connectedComponentsWithStats(
            (labels_HW == value).astype(np.uint8)
        )
        parts += [parts_HW == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= min_area]
    return parts


@dataclass(frozen=True)
class Frame:
    """A square cut of a photograph in the model frame, with the masks to predict.

    ``pixels_3SS``: uint8 RGB. ``masks_Pmm``: float, the share of each cell that the mask covers.
    ``boxes_P4``: float, tight boxes x0, y0, x1, y1 in frame pixels, computed from the outlines
    because a small object may fill a single cell. ``valid``: the (height, width) that the
    photograph covers.
    """

    pixels_3SS: NDArray[np.uint8]
    masks_Pmm: NDArray[np.float32]
    boxes_P4: NDArray[np.float32]
    valid: tuple[int, int]

    def first(self, count: int) -> "Frame":
        """Return the same cut with its first ``count`` masks."""
        return replace(self, masks_Pmm=self.masks_Pmm[:count], boxes_P4=self.boxes_P4[:count])


@dataclass(frozen=True)
class _Window:
    """The position of a square cut in a photograph of ``shape`` (height, width).

    ``scaled`` is the photograph's (height, width) in frame pixels, ``corner`` the (y, x) of the
    window in it, ``valid`` the (height, width) of the window that the photograph covers.
    """

    size: int
    shape: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    flip: bool

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int],
        size: int,
        scales: tuple[float, float],
        random: np.random.Generator,
    ) -> "_Window":
        scale = size * random.uniform(*scales) / max(shape)
        scaled_h, scaled_w = (max(1, round(side * scale)) for side in shape)
        y, x = (int(random.integers(max(side - size, 0) + 1)) for side in (scaled_h, scaled_w))
        return cls(size, shape, (scaled_h, scaled_w), (y, x), bool(random.random() < 0.5))

    @property
    def valid(self) -> tuple[int, int]:
        return min(self.scaled[0], self.size), min(self.scaled[1], self.size)

    def place(self, array: np.ndarray, cells: int) -> np.ndarray:
        """Resize to the drawn scale, cut the window, flip, pad, and shrink to ``cells``."""
        resized = cv2.resize(array, self.scaled[::-1], interpolation=cv2.INTER_AREA)
        (y, x), size = self.corner, self.size
        window = resized[y : y + size, x : x + size]
        window = window[:, ::-1] if self.flip else window
        padding = [(0, size - window.shape[0]), (0, size - window.shape[1]), (0, 0)][: array.ndim]
        padded = np.pad(window, padding)
        return cv2.resize(padded, (cells, cells), interpolation=cv2.INTER_AREA)

    def box(self, mask_HW: np.ndarray) -> NDArray[np.float32]:
        """Return the tight box of a mask's visible part in frame pixels; zeros if there is none."""
        scale_2, corner_2 = np.divide(self.scaled, self.shape), np.array(self.corner)
        first_2 = np.floor(corner_2 / scale_2).astype(int)
        last_2 = np.ceil((corner_2 + self.valid) / scale_2).astype(int)
        visible_2N = np.nonzero(mask_HW[first_2[0] : last_2[0], first_2[1] : last_2[1]])
        if not visible_2N[0].size:
            return np.zeros(4, np.float32)
        low_2, high_2 = (
            ((first_2 + ends) * scale_2 - corner_2).clip(0, self.valid)
            for ends in (np.min(visible_2N, axis=1), np.max(visible_2N, axis=1) + 1)
        )
        (y0, x0), (y1, x1) = low_2, high_2
        if self.flip:
            x0, x1 = self.valid[1] - x1, self.valid[1] - x0
        return np.array([x0, y0, x1, y1], np.float32)


def cut(
    sample: Sample,
    rles: Sequence[dict[str, Any]],
    size: int,
    mask_size: int,
    random: np.random.Generator,
    scales: tuple[float, float] = (0.7, 1.7),
    every: bool = False,
) -> Frame:
    """Return a cut of ``sample`` at a random scale, position and flip, with the visible ``rles``.

    The longer side is scaled to ``scales`` times ``size``, then a ``size``×``size`` window is cut
    out. With ``every``, all of ``rles`` are kept, even those that are not visible.
    Raises BadSample if the photograph or a mask is broken.
    """
    with reading(sample.source, sample.key, "the photograph is broken"):
        image_HW3 = image.decode(sample.encoded, image.ImageLimits())
    height, width = image_HW3.shape[:2]
    window = _Window.draw((height, width), size, scales, random)
    cells = window.valid[0] * window.valid[1] * (mask_size / size) ** 2
    masks, boxes = [], []
    for rle in rles:
        mask_HW = _mask(sample, rle, height, width)
        mask_mm = window.place(mask_HW, mask_size)
        if every or 5 < (mask_mm > 0.5).sum() < 0.9 * cells:
            masks.append(mask_mm)
            boxes.append(window.box(mask_HW))
    return Frame(
        np.ascontiguousarray(window.place(image_HW3, size).transpose(2, 0, 1)),
        np.array(masks, np.float32).reshape(-1, mask_size, mask_size),
        np.array(boxes, np.float32).reshape(-1, 4),
        window.valid,
    )


def _mask(sample: Sample, rle: dict[str, Any], height: int, width: int) -> NDArray[np.float32]:
    with reading(sample.source, sample.key, "a mask is broken"):
        if list(rle["size"]) != [height, width]:
            raise ValueError(
                f"its size is {rle['size']}, expected the photograph's {[height, width]}"
            )
        return coco_mask.decode(rle).astype(np.float32)
