"""Masks from single clicks, measured as in Segment Anything (section 7.1)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samclip_core.answers.sam_head import PROMPTS_PER_CALL
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from training.evaluation.coco import image_path, read_coco
from training.evaluation.layouts import read_json
from training.evaluation.measures import centre, iou
from training.evaluation.suite import Metrics, Options, limited, progress

Outlined = tuple[Path, Callable[[], list[dict[str, Any]]]]


def public(model: SamClip, options: Options) -> Metrics:
    """Return mean IoU on COCO or SA-1B: of the best of three masks, and of the most confident."""
    best, first = [], []
    for path, rles in progress(limited(_pictures(options), options.limit), "points"):
        truths = [coco_mask.decode(rle).astype(bool) for rle in rles()]
        overlaps = list(point_overlaps(model, model.encode(path.read_bytes()), truths))
        best += [max(three) for three in overlaps]
        first += [three[0] for three in overlaps]
    return {
        "point_best_of_3_miou": float(np.mean(best)),
        "point_most_confident_miou": float(np.mean(first)),
    }


def point_overlaps(
    model: SamClip, features: ImageFeatures, truths: Sequence[NDArray[np.bool_]]
) -> Iterator[list[float]]:
    """Yield the IoU of three masks per click on a true mask's centre, most confident first."""
    prompts = [Prompt(points=(centre(truth),)) for truth in truths]
    for answer, truth in zip(answers(model, features, prompts, True), truths, strict=True):
        yield [iou(mask, truth) for mask in answer.masks_MHW]


def answers(
    model: SamClip, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
) -> Iterator[MaskSet]:
    """Yield masks for any number of prompts, one decoder call's worth at a time."""
    for start in range(0, len(prompts), PROMPTS_PER_CALL):
        batch = prompts[start : start + PROMPTS_PER_CALL]
        yield from model.segment(features, batch, multimask=multimask)


def _pictures(options: Options) -> list[Outlined]:
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
    encoded = [coco.annToRLE(outline) for outline in outlines]
    return [rle for rle in encoded if coco_mask.area(rle)]


def _sa1b_rles(file: Path) -> list[dict[str, Any]]:
    outlines = [item["segmentation"] for item in read_json(file)["annotations"]]
    return [rle for rle in outlines if coco_mask.area(rle)]
