"""The suites of ``samclip eval``: what each one measures, on which layout, by whose protocol."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.evaluation import (
    coco,
    documents,
    instances,
    layouts,
    probing,
    recognition,
    semantic,
    words,
)
from training.evaluation.suite import Task


@dataclass(frozen=True)
class Suite:
    """A task on a data set, with its layout and the source of its protocol for ``--help``.

    ``names``: it embeds class names, by default with the 80 templates of the paper. ``masks``: it
    needs a checkpoint with masks.
    """

    task: Task
    about: str
    names: bool = False
    masks: bool = False


def _named(task: Task, about: str) -> Suite:
    return Suite(task, about, names=True)


def _labelled(read: Callable[[Path], layouts.LabelledSet], about: str) -> Suite:
    return _named(partial(semantic.public, read), about)


OWN: dict[str, Suite] = {
    "masks": Suite(
        instances.own_sets, "our own sets: boxes and points, IoU of outlined regions", masks=True
    ),
    "classification": Suite(recognition.classify_own_sets, "our own sets: top-1"),
    "retrieval": Suite(recognition.caption_own_set, "our own captions: recall"),
    "semantic": Suite(semantic.own_sets, "our own label maps: mIoU with one head and with two"),
    "words": Suite(
        words.own_set, "our own things by name: found, fitted; absent names refused", masks=True
    ),
}
SLOW: dict[str, Suite] = {
    "clicks": Suite(
        instances.clicks,
        "our own sets, not part of all: clicks per object until its IoU is 0.85 and 0.90",
    ),
    "documents": Suite(
        documents.own_sets,
        "our own sets, not part of all: the fitted numbers with names, words, examples, concepts "
        "and a search for everything",
        masks=True,
    ),
}
PROBES: dict[str, Suite] = {
    "probe": Suite(
        probing.segmentation,
        "VOC2012, ADEChallengeData2016 or our own sets: linear head on the encoder's map, table 3",
    ),
    "probe-classify": Suite(
        probing.classification,
        "train/CLASS/, val/CLASS/ or our own sets: linear head on pooled features, table 4",
    ),
}
SUITES: dict[str, Suite] = {
    **OWN,
    **SLOW,
    "imagenet": _named(
        recognition.folders, "val/WNID/*.JPEG; open_clip's class names and templates, table 1"
    ),
    "imagenet-v2": _named(
        recognition.folders,
        "0/ to 999/*.jpeg, as published (matched-frequency); as imagenet, table 1",
    ),
    "coco-captions": Suite(recognition.captions, "captions_val2017.json; R@k, table 1"),
    "coco-boxes": Suite(
        coco.coco_boxes,
        "instances_val2017.json, --detections of ViTDet-B; mask AP by pycocotools, table 1",
    ),
    "voc": _labelled(
        layouts.voc,
        "VOC2012: 21 classes by CLIPpy's rule (the paper's, table 2) and by ours, 20 without",
    ),
    "ade20k": _labelled(layouts.ade20k, "ADEChallengeData2016: 150 classes, table 2"),
    "coco-panoptic": _labelled(layouts.coco_panoptic, "panoptic_val2017/: 133 classes, table 2"),
    **PROBES,
}


def described() -> str:
    """Return a line per suite, and the flags that reproduce the paper's tables."""
    rows = [
        textwrap.fill(suite.about, 79, initial_indent=f"  {name:<15} ", subsequent_indent=" " * 18)
        for name, suite in SUITES.items()
    ]
    notes = (
        "top1 is of whole photographs, padded as in serving; paper_top1 is of their central "
        "squares, as published figures of CLIP models are.",
        "The paper evaluates names at --size 336, table 2 at --protocol paper --size 448 and "
        "boxes at SAM's own 1024. Semantic figures: miou is over the classes in the ground truth, "
        "miou_union over those with a union above 0 (mmsegmentation's rule), miou_low and "
        "miou_high are the 95 % bootstrap interval of miou over photographs. Those with paper in "
        "their name are of squashed frames without SAM's attention, the others as served.",
        "probe-classify on ImageNet with --size 336 --device cuda --dtype bfloat16 takes about 10 "
        "hours of an H100 for vit-b. A stopped probe starts again from the beginning.",
    )
    head = "suites, with the layout under --root and the paper's table (arXiv 2310.15308):"
    return "\n\n".join(["\n".join([head, *rows]), *(textwrap.fill(note, 79) for note in notes)])
