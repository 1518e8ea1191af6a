"""Read the label maps and outlined regions of samples."""

import io
import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from samclip_core import guarded
from samclip_core.io.folder import Folder
from samclip_core.io.masks import decode_runs
from training.data.sample import BadSample, Sample, reading
from training.data.sources import open_source

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


def _indices(sample: Sample, png: bytes) -> NDArray[Any]:
    with reading(sample.source, sample.key, "its label map is broken"):
        return np.array(Image.open(io.BytesIO(png)))


def classes(sample: Sample, indices: Collection[int]) -> dict[int, dict[str, Any]]:
    """Return the mask of each class of ``indices`` in the sample's label map, as COCO RLE."""
    labels_HW = label_map(sample)
    present = sorted(set(np.unique(labels_HW).tolist()) & set(indices))
    return {index: encoded(labels_HW == index) for index in present}


def encoded(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    return rle


def decoded(rles: Iterable[dict[str, Any]]) -> list[NDArray[np.bool_]]:
    return [coco_mask.decode(rle).astype(bool) for rle in rles]


def class_names(root: Path | str, source: str) -> dict[int, str]:
    """Return the names of a set's classes by index, without the ignored indices.

    ``root`` is a folder or any fsspec URL.
    """
    content = _classes(root, source)
    ignored = set(content.get("ignore_ids", ()))
    return {c["id"]: c["name"] for c in content["classes"] if c["id"] not in ignored}


def thing_names(root: Path | str, source: str) -> list[str]:
    """Return the names of a set's countable classes, in the order of their indices."""
    return [c["name"] for c in _classes(root, source)["classes"] if c["isthing"]]


def _classes(root: Path | str, source: str) -> dict[str, Any]:
    content: dict[str, Any] = guarded.parsed(Folder(f"{root}/{source}").text("classes.json"))
    return content


def imagenet_names(data: Path | str) -> list[str]:
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
            return [
                compressed(i["segmentation"]) for i in _outlined(sample) if i["area"] >= min_area
            ]
    elif sample.label_png and sample.source in IGNORED and sample.source != "coco_multi":
        masks = _components(label_map(sample), IGNORED[sample.source])
    else:
        masks = []
    return [rle for rle in map(encoded, masks) if coco_mask.area(rle) >= min_area]


def _outlined(sample: Sample) -> list[dict[str, Any]]:
    """Return COCO's instances without crowds, or the annotations of SA-1B or BSDS500."""
    if "annotations" in sample.info:
        return [i for a in sample.info["annotations"] for i in a.get("instances", [a])]
    return [i for i in sample.info["instances"] if not i["iscrowd"]]


def compressed(segmentation: dict[str, Any]) -> dict[str, Any]:
    """Return a checked compressed COCO RLE, because pycocotools does not validate its input.

    Raises ValueError, TypeError or KeyError if it is none.
    """
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    decode_runs(counts.encode() if isinstance(counts, str) else counts, height, width)
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
