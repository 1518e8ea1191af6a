"""COCO-style JSON: reading, image paths, and average precision with pycocotools.

LVIS uses the same code with its two federated rules, because the lvis package (0.5.3, 2020) uses
names that NumPy has since removed and needs an OpenCV package that conflicts with the headless one.
"""

import contextlib
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.evaluation.layouts import existing, read_json
from training.evaluation.suite import Metrics

LVIS_DETECTIONS = 300  # per image; COCO allows 100 per image and category
RARITY = {"r": "rare", "c": "common", "f": "frequent"}
SIZES = {"small": 1, "medium": 2, "large": 3}  # COCOeval's area ranges


def read_coco(path: Path) -> COCO:
    """Read a COCO-style JSON; annotations without ``iscrowd`` (LVIS) are not crowds."""
    return to_coco(read_json(path))


def to_coco(dataset: dict[str, Any]) -> COCO:
    """Return an annotation set in COCO's format, indexed."""
    coco = COCO()
    coco.dataset = dataset
    for annotation in coco.dataset["annotations"]:
        annotation.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        coco.createIndex()
    return coco


def image_path(root: Path, annotations: Path, record: dict[str, Any]) -> Path:
    """Return the path of an image. Raises FileNotFoundError.

    Tries the folder in LVIS's URL, ``val2017/`` for ``…_val2017.json``, ``root`` and ``images/``.
    """
    url = record.get("coco_url", "").split("/")[-2:]
    name = record.get("file_name") or url[-1]
    folders = [annotations.stem.rpartition("_")[2], ".", "images"]
    places = [root / folder / name for folder in folders]
    return existing([root.joinpath(*url), *places] if len(url) == 2 else places, "image")


class FederatedEval(COCOeval):
    """LVIS evaluation: ignores unmatched detections of an image's non-exhaustive categories."""

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> Any:
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        record = self.cocoGt.imgs[imgId]
        if result is not None and catId in record["not_exhaustive_category_ids"]:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def average_precision(
    coco: COCO, results: list[dict[str, Any]], images: list[int], federated: bool = False
) -> Metrics:
    """Return mask AP over IoU .5 to .95, at .5 and .75, by size, and for LVIS by frequency.

    ``results``: COCO's results format with ``segmentation`` and ``score``. Only ``images`` are
    evaluated.
    """
    if federated:
        results = _federated(coco, results)
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes modifies its argument and rejects an empty list.
        found = coco.loadRes([dict(result) for result in results]) if results else COCO()
        if not results:
            found.createIndex()
        evaluation = (FederatedEval if federated else COCOeval)(coco, found, "segm")
        evaluation.params.imgIds = images
        evaluation.params.maxDets = [LVIS_DETECTIONS if federated else 100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRKA = evaluation.eval["precision"][..., 0]  # IoU, recall, category, area
    metrics = {
        "ap": _mean(precision_TRKA[..., 0]),
        "ap50": _mean(precision_TRKA[0, ..., 0]),
        "ap75": _mean(precision_TRKA[5, ..., 0]),
    } | {f"ap_{size}": _mean(precision_TRKA[..., area]) for size, area in SIZES.items()}
    for letter, word in RARITY.items() if federated else ():
        kept = [coco.cats[k]["frequency"] == letter for k in evaluation.params.catIds]
        metrics[f"ap_{word}"] = _mean(precision_TRKA[:, :, kept, 0])
    return metrics


def _mean(precision: np.ndarray) -> float:
    """Return the mean over categories that occur (absent ones have -1); 0 if none does."""
    occurring = precision[precision > -1]
    return float(occurring.mean()) if occurring.size else 0.0


def _federated(coco: COCO, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the best results of each image, in the categories that were annotated in it."""
    by_image = defaultdict(list)
    for result in sorted(results, key=lambda result: -result["score"]):
        by_image[result["image_id"]].append(result)
    kept = []
    for image, found in by_image.items():
        annotated = {a["category_id"] for a in coco.imgToAnns[image]}
        annotated |= set(coco.imgs[image]["neg_category_ids"])
        kept += [r for r in found[:LVIS_DETECTIONS] if r["category_id"] in annotated]
    return kept
