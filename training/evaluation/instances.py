"""Masks from boxes and clicks: mean IoU, and average precision on COCO and LVIS.

Clicks are measured as in Segment Anything (section 7.1).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samclip_core.answers.sam_head import PROMPTS_PER_CALL
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.data.annotations import decoded, encoded, regions
from training.data.sample import Sample
from training.evaluation.coco import average_precision, image_path, read_coco
from training.evaluation.layouts import existing, read_json
from training.evaluation.measures import centre, iou
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress

THING_AREA = 32 * 32  # pixels; smaller objects cover few cells of the mask grid


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU of box prompts, and of centre points with the first and the best mask."""
    metrics = {}
    for source in ("coco_multi", "bsds500"):
        box, point, thing = [], [], []
        for sample in progress(own_samples(options, source, usable=regions), f"masks {source}"):
            truths = decoded(regions(sample))
            features = model.encode(sample.encoded)
            box += box_overlaps(model, features, truths)
            point += list(point_overlaps(model, features, truths))
            outlines = [instance["segmentation"] for instance in things(sample)]
            thing += box_overlaps(model, features, decoded(outlines))
        metrics[f"{source}_box_miou"] = float(np.mean(box))
        metrics[f"{source}_point_best_of_3_miou"] = float(np.mean([max(three) for three in point]))
        metrics[f"{source}_point_miou"] = float(np.mean([three[0] for three in point]))
        if thing:
            metrics[f"{source}_things_box_miou"] = float(np.mean(thing))
    return metrics


def things(sample: Sample) -> list[dict[str, Any]]:
    """Return coco_multi's countable objects that are large enough to judge."""
    return [
        instance
        for instance in sample.info.get("instances", ())
        if not instance["iscrowd"] and instance["area"] >= THING_AREA
    ]


def box_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> list[float]:
    """Return the IoU of the single mask for each true mask's own box."""
    prompts = [Prompt(box=mask_box(truth)) for truth in truths]
    masks = (answer.masks_MHW[0] for answer in _answers(model, features, prompts, False))
    return [iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]


def point_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> Iterator[list[float]]:
    """Yield the IoU of three masks per click on a true mask's centre, most confident first."""
    prompts = [Prompt(points=(centre(truth),)) for truth in truths]
    for answer, truth in zip(_answers(model, features, prompts, True), truths, strict=True):
        yield [iou(mask, truth) for mask in answer.masks_MHW]


def _answers(
    model: SamClip, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
) -> Iterator[MaskSet]:
    """Yield masks for any number of prompts, one decoder call's worth at a time."""
    for start in range(0, len(prompts), PROMPTS_PER_CALL):
        batch = prompts[start : start + PROMPTS_PER_CALL]
        yield from model.segment(features, batch, multimask=multimask)


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
    for box, answer in zip(kept, _answers(model, features, prompts, False), strict=True):
        score = float(box.get("score", answer.predicted_iou_M[0]))
        known = {key: box[key] for key in ("image_id", "category_id")}
        results.append(known | {"segmentation": encoded(answer.masks_MHW[0]), "score": score})
    return results


def public_points(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU on COCO or SA-1B: of the best of three masks, and of the most confident."""
    best, first = [], []
    for path, rles in progress(limited(_outlined(options), options.limit), "points"):
        truths = decoded(rles())
        overlaps = list(point_overlaps(model, model.encode(path.read_bytes()), truths))
        best += [max(three) for three in overlaps]
        first += [three[0] for three in overlaps]
    return {
        "point_best_of_3_miou": float(np.mean(best)),
        "point_most_confident_miou": float(np.mean(first)),
    }


def _outlined(options: Options) -> list[tuple[Path, Callable[[], list[dict[str, Any]]]]]:
    """List images with outlines, each with a reader of its non-empty, non-crowd outlines."""
    if options.annotations is None and (files := sorted(options.root.rglob("sa_*.json"))):
        return [(file.with_suffix(".jpg"), partial(_sa1b_rles, file)) for file in files]
    annotations = options.annotations or options.root / "annotations/instances_val2017.json"
    coco = read_coco(annotations)
    return [
        (image_path(options.root, annotations, record), partial(_coco_rles, coco, image))
        for image, record in coco.imgs.items()
        if image in coco.imgToAnns
    ]


def _coco_rles(coco: COCO, image: int) -> list[dict[str, Any]]:
    outlines = [outline for outline in coco.imgToAnns[image] if not outline["iscrowd"]]
    return [rle for rle in map(coco.annToRLE, outlines) if coco_mask.area(rle)]


def _sa1b_rles(file: Path) -> list[dict[str, Any]]:
    outlines = [item["segmentation"] for item in read_json(file)["annotations"]]
    return [rle for rle in outlines if coco_mask.area(rle)]
