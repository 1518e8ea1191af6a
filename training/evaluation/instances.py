"""Masks from boxes: mean IoU on our own sets, average precision on COCO and LVIS."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt
from training.data.annotations import Sample, regions
from training.evaluation.coco import average_precision, image_path, read_coco
from training.evaluation.layouts import existing, read_json
from training.evaluation.measures import box_around, iou
from training.evaluation.points import answers, point_overlaps
from training.evaluation.suite import (
    Metrics,
    Options,
    limited,
    own_samples,
    progress,
)

THING_AREA = 32 * 32  # pixels; smaller objects cover few cells of the mask grid


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU of box prompts, and of centre points with the first and the best mask."""
    metrics = {}
    for source in ("coco_multi", "bsds500"):
        box, point, thing = [], [], []
        for sample in progress(own_samples(options, source, usable=regions), f"masks {source}"):
            truths = _decoded(regions(sample))
            features = model.encode(sample.encoded)
            box += box_overlaps(model, features, truths)
            point += list(point_overlaps(model, features, truths))
            thing += box_overlaps(model, features, _decoded(_things(sample)))
        metrics[f"{source}_box_miou"] = float(np.mean(box))
        metrics[f"{source}_point_best_of_3_miou"] = float(np.mean([max(three) for three in point]))
        metrics[f"{source}_point_miou"] = float(np.mean([three[0] for three in point]))
        if thing:
            metrics[f"{source}_things_box_miou"] = float(np.mean(thing))
    return metrics


def box_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> list[float]:
    """Return the IoU of the single mask for each true mask's own box."""
    prompts = [Prompt(box=box_around(truth)) for truth in truths]
    masks = (answer.masks_MHW[0] for answer in answers(model, features, prompts, False))
    return [iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]


def _things(sample: Sample) -> list[dict[str, Any]]:
    """Return coco_multi's countable objects that are large enough to judge."""
    return [
        instance["segmentation"]
        for instance in sample.info.get("instances", ())
        if not instance["iscrowd"] and instance["area"] >= THING_AREA
    ]


def _decoded(rles: Sequence[dict[str, Any]]) -> list[NDArray[np.bool_]]:
    return [coco_mask.decode(rle).astype(bool) for rle in rles]


def coco_boxes(model: SamClip, options: Options) -> Metrics:
    """Return mask AP on COCO from true or detected boxes (ViTDet's JSON; paper, table 1)."""
    annotations = options.annotations or options.root / "annotations/instances_val2017.json"
    return _from_boxes(model, options, annotations, federated=False)


def lvis_boxes(model: SamClip, options: Options) -> Metrics:
    """Return mask AP on LVIS v1, as ``coco_boxes``."""
    names = ("annotations/lvis_v1_val.json", "lvis_v1_val.json")
    annotations = options.annotations or existing((options.root / n for n in names), "LVIS JSON")
    return _from_boxes(model, options, annotations, federated=True)


def _from_boxes(model: SamClip, options: Options, annotations: Path, federated: bool) -> Metrics:
    coco = read_coco(annotations)
    boxes = _boxes(coco, options.detections)
    chosen = limited(sorted(coco.imgs), options.limit)
    results = []
    for image in progress(chosen, "boxes"):
        path = image_path(options.root, annotations, coco.imgs[image])
        if boxes[image]:
            results += _segmented(model, model.encode(path.read_bytes()), boxes[image])
    return average_precision(coco, results, chosen, federated)


def _boxes(coco: COCO, detections: Path | None) -> dict[int, list[dict[str, Any]]]:
    """Return each image's boxes: a detector's, or the annotated ones without crowds."""
    found = coco.dataset["annotations"]
    if detections is not None:
        found = read_json(detections)
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in found:
        if not box.get("iscrowd"):
            boxes[box["image_id"]].append(box)
    return boxes


def _segmented(
    model: SamClip, features: ImageFeatures, boxes: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return COCO results; their score is the detector's, or the predicted IoU of a true box."""
    height, width = features.geometry.height, features.geometry.width
    kept, prompts = [], []
    for box in boxes:
        x, y, w, h = box["bbox"]
        corners = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            kept.append(box)
            prompts.append(Prompt(box=corners))
    results = []
    for box, answer in zip(kept, answers(model, features, prompts, False), strict=True):
        rle = coco_mask.encode(np.asfortranarray(answer.masks_MHW[0].astype(np.uint8)))
        score = float(box.get("score", answer.predicted_iou_M[0]))
        known = {key: box[key] for key in ("image_id", "category_id")}
        results.append(known | {"segmentation": rle, "score": score})
    return results
