"""Masks from boxes and clicks: mean IoU, and average precision on COCO and LVIS.

Clicks are measured as in Segment Anything (section 7.1).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samclip_core.answers.request import check_has_masks
from samclip_core.answers.sam_head import PROMPTS_PER_CALL
from samclip_core.encoder import Prepared
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.data.annotations import decoded, encoded, regions
from training.data.sample import Sample
from training.evaluation.batches import scored
from training.evaluation.coco import average_precision, image_path, read_coco
from training.evaluation.detections import read_detections
from training.evaluation.layouts import existing, read_json
from training.evaluation.measures import centre, iou
from training.evaluation.suite import Metrics, Options, limited, own_samples

THING_AREA = 32 * 32  # pixels; smaller objects cover few cells of the mask grid


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU of box prompts, and of centre points with the first and the best mask."""
    metrics = {}
    for source in ("coco_multi", "bsds500"):
        samples = own_samples(options, source, usable=regions)
        rows = scored(model, options, samples, framed, _overlaps, f"masks {source}")
        box, point, thing = (list(chain.from_iterable(c)) for c in zip(*rows, strict=True))
        metrics[f"{source}_box_miou"] = float(np.mean(box))
        metrics[f"{source}_point_best_of_3_miou"] = float(np.mean([max(three) for three in point]))
        metrics[f"{source}_point_miou"] = float(np.mean([three[0] for three in point]))
        if thing:
            metrics[f"{source}_things_box_miou"] = float(np.mean(thing))
    return metrics


class _Overlaps(NamedTuple):
    """The IoU of one photograph's regions from boxes and from points, and of its things."""

    box: list[float]
    point: list[list[float]]
    thing: list[float]


def framed(model: SamClip, sample: Sample) -> Prepared:
    """Read a photograph into the frame that masks need."""
    return model.prepare(sample.encoded)


def _overlaps(model: SamClip, batch: Sequence[tuple[Sample, ImageFeatures]]) -> list[_Overlaps]:
    rows = []
    for sample, features in batch:
        truths = decoded(regions(sample))
        outlines = [instance["segmentation"] for instance in things(sample)]
        rows.append(
            _Overlaps(
                box_overlaps(model, features, truths),
                list(point_overlaps(model, features, truths)),
                box_overlaps(model, features, decoded(outlines)),
            )
        )
    return rows


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
    masks = (answer.masks_MHW[0] for answer in answers(model, [(features, prompts)], False))
    return [iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]


def point_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> Iterator[list[float]]:
    """Yield the IoU of three masks per click on a true mask's centre, most confident first."""
    prompts = [Prompt(points=(centre(truth),)) for truth in truths]
    for answer, truth in zip(answers(model, [(features, prompts)], True), truths, strict=True):
        yield [iou(mask, truth) for mask in answer.masks_MHW]


def answers(
    model: SamClip, asked: Sequence[tuple[ImageFeatures, Sequence[Prompt]]], multimask: bool
) -> Iterator[MaskSet]:
    """Yield the masks of each prompt of some pictures, in order; calls of the decoder are full."""
    check_has_masks(model.config)
    pairs = [(features, prompt) for features, prompts in asked for prompt in prompts]
    for start in range(0, len(pairs), PROMPTS_PER_CALL):
        pictures = groupby(pairs[start : start + PROMPTS_PER_CALL], key=itemgetter(0))
        requests = [(features, [prompt for _, prompt in group]) for features, group in pictures]
        for found in model.sam_head.decode_batch(requests, multimask):
            yield from (logits.enlarge_all() for logits in found)


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
    if options.detections is None:
        boxes = _true_boxes(coco)
    else:
        boxes = read_detections(options.detections, coco)
    chosen = limited(sorted(coco.imgs), options.limit)
    places = {image: image_path(options.root, annotations, coco.imgs[image]) for image in chosen}
    pictures = [_Boxes(places[image], boxes[image]) for image in chosen if boxes[image]]
    rows = scored(model, options, pictures, _read, _segmented, "boxes")
    return average_precision(coco, list(chain.from_iterable(rows)), chosen, federated)


class _Boxes(NamedTuple):
    """The file of an image, and boxes in COCO's format in it."""

    path: Path
    boxes: list[dict[str, Any]]


def _read(model: SamClip, picture: _Boxes) -> Prepared:
    return model.prepare(picture.path.read_bytes())


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
    prompted = [_prompts(features, picture.boxes) for picture, features in batch]
    asked = [
        (features, [*one.values()]) for one, (_, features) in zip(prompted, batch, strict=True)
    ]
    found, rows = answers(model, asked, False), []
    for one, (picture, _) in zip(prompted, batch, strict=True):
        rows.append([_result(picture.boxes[index], next(found)) for index in one])
    return rows


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


def public_points(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU on COCO or SA-1B: of the best of three masks, and of the most confident."""
    pictures = limited(_outlined(options), options.limit)
    rows = scored(model, options, pictures, _read_outlined, _from_points, "points")
    overlaps = [three for row in rows for three in row]
    return {
        "point_best_of_3_miou": float(np.mean([max(three) for three in overlaps])),
        "point_most_confident_miou": float(np.mean([three[0] for three in overlaps])),
    }


def _read_outlined(model: SamClip, picture: "_Outlined") -> Prepared:
    return model.prepare(picture[0].read_bytes())


def _from_points(
    model: SamClip, batch: Sequence[tuple["_Outlined", ImageFeatures]]
) -> list[list[list[float]]]:
    return [list(point_overlaps(model, features, decoded(rles()))) for (_, rles), features in batch]


_Outlined = tuple[Path, Callable[[], list[dict[str, Any]]]]
"""An image, and a reader of its outlines that are neither empty nor of crowds."""


def _outlined(options: Options) -> list[_Outlined]:
    """List images with outlines."""
    if options.annotations is None and (files := sorted(options.root.rglob("sa_*.json"))):
        return [(file.with_suffix(".jpg"), partial(_sa1b_rles, file)) for file in files]
    annotations = options.annotations or options.root / "annotations/instances_val2017.json"
    coco = read_coco(annotations)
    return [
        (
            image_path(options.root, annotations, record),
            partial(_coco_rles, coco.imgToAnns[image], record),
        )
        for image, record in coco.imgs.items()
        if image in coco.imgToAnns
    ]


def _coco_rles(
    annotations: Sequence[dict[str, Any]], record: dict[str, Any]
) -> list[dict[str, Any]]:
    coco = COCO()
    coco.imgs = {record["id"]: record}  # for the size of the image
    rles = [coco.annToRLE(outline) for outline in annotations if not outline["iscrowd"]]
    return [rle for rle in rles if coco_mask.area(rle)]


def _sa1b_rles(file: Path) -> list[dict[str, Any]]:
    outlines = [item["segmentation"] for item in read_json(file)["annotations"]]
    return [rle for rle in outlines if coco_mask.area(rle)]
