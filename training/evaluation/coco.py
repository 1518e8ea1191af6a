"""Masks on COCO and LVIS from boxes: average precision.

Boxes are the annotations' own, or those of a detector in COCO's results format. LVIS adds two rules
to COCO's, as its own package does, which does not run with today's NumPy.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samclip_core import guarded
from samclip_core.encoder import Prepared
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.data.annotations import encoded
from training.evaluation.instances import answers
from training.evaluation.layouts import Boxed
from training.evaluation.published_names import read_json
from training.evaluation.suite import Metrics, Options, scored

KEYS = ("image_id", "category_id", "bbox", "score")
FORMAT = (
    'a list of {"image_id": …, "category_id": …, "bbox": [x_min, y_min, width, height], "score": …}'
)
LVIS_MASKS = 300  # of an image; COCO allows 100 of each category
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
SIZES = {"small": 1, "medium": 2, "large": 3}  # COCOeval's area ranges


def indexed(content: dict[str, Any]) -> COCO:
    """Return annotations of instances as pycocotools reads them."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        coco.createIndex()
    return coco


class FederatedEval(COCOeval):
    """LVIS's evaluation: unmatched masks of categories that are not marked everywhere are ignored.

    An image has ``not_exhaustive_category_ids``, whose things were not all outlined.
    """

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> Any:
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result and catId in self.cocoGt.imgs[imgId]["not_exhaustive_category_ids"]:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def _federated(coco: COCO, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the best results of each image, of the categories that were looked for in it."""
    by_image = defaultdict(list)
    for result in sorted(results, key=lambda result: -result["score"]):
        by_image[result["image_id"]].append(result)
    kept = []
    for image, of_image in by_image.items():
        looked_for = {a["category_id"] for a in coco.imgToAnns[image]}
        looked_for |= set(coco.imgs[image]["neg_category_ids"])
        kept += [r for r in of_image[:LVIS_MASKS] if r["category_id"] in looked_for]
    return kept


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
        detected = coco.loadRes([dict(result) for result in results]) if results else COCO()
        if not results:
            detected.createIndex()
        evaluation = (FederatedEval if federated else COCOeval)(coco, detected, "segm")
        evaluation.params.imgIds = images
        evaluation.params.maxDets = [LVIS_MASKS if federated else 100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRKA = evaluation.eval["precision"][..., 0]  # IoU, recall, category, area
    metrics: Metrics = {
        "ap": _mean(precision_TRKA[..., 0]),
        "ap50": _mean(precision_TRKA[0, ..., 0]),
        "ap75": _mean(precision_TRKA[5, ..., 0]),
    } | {f"ap_{size}": _mean(precision_TRKA[..., area]) for size, area in SIZES.items()}
    for letter, word in FREQUENCIES.items() if federated else ():
        of_word = [coco.cats[c]["frequency"] == letter for c in evaluation.params.catIds]
        metrics[f"ap_{word}"] = _mean(precision_TRKA[:, :, of_word, 0])
    return metrics


def _mean(precision: np.ndarray) -> float:
    """Return the mean over categories that occur (absent ones have -1); 0 if none does."""
    occurring = precision[precision > -1]
    return float(occurring.mean()) if occurring.size else 0.0


def read_detections(path: Path, coco: COCO) -> dict[int, list[dict[str, Any]]]:
    """Return the boxes of each image, in pixels of the photograph.

    Raises ValueError, which says what to change, if they are not boxes of these images and
    categories, or most of them do not lie inside their images.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(map(_is_box, content)):
        raise ValueError(f"{path} is not in COCO's results format: expected {FORMAT}")
    _check_ids(path, "image_id", content, coco.imgs, "they are of other photographs")
    _check_ids(
        path,
        "category_id",
        content,
        coco.cats,
        "some detectors write the place of a category, from 0 on: replace it by the category's id",
    )
    _check_frame(path, content, coco)
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in content:
        boxes[box["image_id"]].append({key: box[key] for key in KEYS})  # without its masks
    return boxes


def _is_box(box: object) -> bool:
    if not isinstance(box, dict) or not all(key in box for key in KEYS):
        return False
    numbers = [*box["bbox"], box["score"]] if isinstance(box["bbox"], list) else []
    real = all(isinstance(number, int | float) and np.isfinite(number) for number in numbers)
    return len(numbers) == 5 and real


def _check_ids(
    path: Path, key: str, boxes: Sequence[dict[str, Any]], known: Collection[Any], advice: str
) -> None:
    if unknown := {box[key] for box in boxes} - set(known):
        raise ValueError(
            f"{path}: the annotations have no {key} {min(unknown, key=str)!r} (of {len(unknown)} "
            f"that they lack): {advice}"
        )


def _check_frame(path: Path, boxes: Sequence[dict[str, Any]], coco: COCO) -> None:
    """Raise ValueError if most boxes end outside their images, or all are a pixel at most."""
    sizes = [(coco.imgs[b["image_id"]]["width"], coco.imgs[b["image_id"]]["height"]) for b in boxes]
    box_N4 = np.array([box["bbox"] for box in boxes], np.float64).reshape(-1, 4)
    end_N2 = box_N4[:, :2] + box_N4[:, 2:]
    outside_N = (end_N2 > np.array(sizes).reshape(-1, 2) + 1).any(axis=1)  # a pixel of rounding
    normalised = len(boxes) > 0 and box_N4.max() <= 1
    if normalised or 2 * outside_N.sum() > len(boxes):
        raise ValueError(
            f"{path}: {int(outside_N.sum())} of {len(boxes)} boxes end outside their photographs, "
            f"and the largest number is {box_N4.max():g}: expected pixels of the photograph as it "
            "is stored, [x_min, y_min, width, height]; corners, shares of the sides and pixels of "
            "a resized photograph must be converted"
        )


def boxes(data: Boxed, model: SamClip, options: Options) -> Metrics:
    """Return mask AP from true or detected boxes (ViTDet's JSON; paper, table 1)."""
    coco = indexed(data.content)
    if options.detections is None:
        found = _true_boxes(coco)
    else:
        found = read_detections(options.detections, coco)
    pictures = [_Boxes(path, found[image]) for path, image in data.pictures if found[image]]
    rows = scored(model, pictures, _framed, _segmented, "boxes")
    images = [image for _, image in data.pictures]
    return average_precision(coco, list(chain.from_iterable(rows)), images, data.federated)


class _Boxes(NamedTuple):
    """The file of an image, and boxes in COCO's format in it."""

    path: Path
    boxes: list[dict[str, Any]]


def _framed(model: SamClip, picture: tuple[Path, Any]) -> Prepared:
    return model.prepare(guarded.read(picture[0]))


def _true_boxes(coco: COCO) -> dict[int, list[dict[str, Any]]]:
    """Return each image's annotated boxes, without crowds and without what masks do not need."""
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in coco.dataset["annotations"]:
        if not box["iscrowd"]:
            known = {key: box[key] for key in ("image_id", "category_id", "bbox")}
            boxes[box["image_id"]].append(known)
    return boxes


def _segmented(
    model: SamClip, batch: Sequence[tuple[_Boxes, ImageFeatures]]
) -> list[list[dict[str, Any]]]:
    """Return the COCO results of each image.

    Their score is the detector's, or the predicted IoU of a true box.
    """
    prompts = [_prompts(features, picture.boxes) for picture, features in batch]
    asked = [
        (features, [*of_picture.values()])
        for of_picture, (_, features) in zip(prompts, batch, strict=True)
    ]
    masks = answers(model, asked, False)
    return [
        [_result(picture.boxes[index], next(masks)) for index in of_picture]
        for of_picture, (picture, _) in zip(prompts, batch, strict=True)
    ]


def _prompts(features: ImageFeatures, boxes: Sequence[dict[str, Any]]) -> dict[int, Prompt]:
    """Return the prompt of each box that is in the image, cut to it, by the box's index."""
    height, width = features.geometry.height, features.geometry.width
    prompts = {}
    for index, box in enumerate(boxes):
        x, y, w, h = box["bbox"]
        corners = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            prompts[index] = Prompt(box=corners)
    return prompts


def _result(box: dict[str, Any], answer: MaskSet) -> dict[str, Any]:
    score = float(box.get("score", answer.predicted_iou_M[0]))
    known = {key: box[key] for key in ("image_id", "category_id")}
    return known | {"segmentation": encoded(answer.masks_MHW[0]), "score": score}
