"""Text-prompted semantic segmentation, measured by mean IoU.

Two protocols: ``whole`` encodes the image as the service does; ``square`` squashes it to the square
model frame, as the paper does at 448 (section 4.2 and appendix C).

Three rules for the background of a set: ``ignored``, its pixels do not count; ``clippy``, it is a
class that "background" or one of 39 further words wins (the paper's protocol for VOC, after CLIPpy,
arXiv 2210.09996); ``clear_win``, it is the class of pixels that no label wins clearly
(``samclip_core.answers.semantic``).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samclip_core.io.image import decode
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import class_names, label_map
from training.data.sample import Sample
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import class_pixels, semantic_figures
from training.evaluation.suite import Metrics, Options, Protocol, limited, own_samples, progress

HEADS = {"": False, "_two_heads": True}
Background = Literal["ignored", "clippy", "clear_win"]


def own_set(options: Options, source: str, split: str = "val") -> LabelledSet:
    """Read one of our own sets; of coco_multi, only the fully labelled images."""
    return labelled_set(options.root, source, own_samples(options, source, split, _labelled))


def labelled_set(root: Path, source: str, samples: Sequence[Sample]) -> LabelledSet:
    """Return the fully labelled photographs among some of a set; there may be none."""
    pictures = [
        Mapped(partial(bytes, sample.encoded), partial(label_map, sample))
        for sample in samples
        if _labelled(sample)
    ]
    return LabelledSet(source, class_names(root, source), pictures)


def _labelled(sample: Sample) -> bool:
    kind = sample.info.get("label_kind") or "panoptic"  # most sets do not say it
    return bool(sample.label_png) and kind == "panoptic"


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return the figures of our own sets, by the CLIP head alone and by both heads."""
    metrics: Metrics = {}
    for source in ("coco_multi", "labelmefacade", "camvid"):
        data = own_set(options, source)
        for head, refine in HEADS.items():
            if refine and not model.config.masks:
                continue
            name = f"{source}_semantic{head}{_suffix(options)}"
            metrics |= semantic_figures(name, measure(model, data, options.protocol, refine))
    return metrics


def public(read: Callable[[Path], LabelledSet], model: SamClip, options: Options) -> Metrics:
    """Return the figures of a public set, by the CLIP head and with ``refine`` also by both heads.

    A set with a background is measured by each rule that applies to it. Without
    ``options.attention``, the map is read as it is, as in the paper.
    """
    if not options.attention:
        calibration = replace(model.config.fitted, attention=None)
        model.config = replace(model.config, calibration=calibration)
    data = read(options.root)
    data = replace(data, pictures=limited(data.pictures, options.limit))
    metrics: Metrics = {}
    for head, refine in HEADS.items():
        if refine and not options.refine:
            continue
        for rule, suffix in _rules(data).items():
            name = f"{data.name}{suffix}{head}{_suffix(options)}"
            pixels_N3C = measure(model, data, options.protocol, refine, rule)
            metrics |= semantic_figures(name, pixels_N3C)
    return metrics


def _rules(data: LabelledSet) -> dict[Background, str]:
    """Return the rules that apply to a set, and how each one shows in the figures' names."""
    if data.background is None:
        return {"ignored": ""}
    count = len(data.classes)
    rules: dict[Background, str] = {"ignored": f"_{count}"}
    if data.prompts:
        rules["clippy"] = f"_{count + 1}_clippy"
    return rules | {"clear_win": f"_{count + 1}_clear_win"}


def _suffix(options: Options) -> str:
    return "" if options.protocol == "whole" else f"_{options.protocol}"


def measure(
    model: SamClip,
    data: LabelledSet,
    protocol: Protocol = "whole",
    refine: bool = False,
    rule: Background = "ignored",
) -> list[NDArray[np.int64]]:
    """Return the pixel counts 3×C of each photograph of a set (``class_pixels``)."""
    values = data.values(background=rule != "ignored")
    labels = list(data.classes.values())
    if rule == "clippy":
        labels = list(data.prompts)
    size = model.config.image_size if refine else model.config.size_of("semantic")
    counts = []
    for picture in progress(data.pictures, f"semantic {data.name} {protocol} refine={refine}"):
        truth_HW = picture.labels()
        features = encode(model, picture.read(), protocol, size)
        answer = model.segment_text(features, labels, rule == "clear_win", refine)
        answer_HW = _indices(answer.label_map_HW, rule, len(values))
        if answer_HW.shape != truth_HW.shape:
            size_wh = (truth_HW.shape[1], truth_HW.shape[0])
            answer_HW = cv2.resize(answer_HW, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
        counts.append(class_pixels(truth_HW, answer_HW, values))
    return counts


def _indices(
    label_map_HW: NDArray[np.integer], rule: Background, classes: int
) -> NDArray[np.integer]:
    """Turn indices of labels into indices of the evaluated classes; background is 0."""
    if rule == "clear_win":
        return label_map_HW + 1
    return np.where(label_map_HW < classes, label_map_HW, 0) if rule == "clippy" else label_map_HW


def encode(model: SamClip, encoded: bytes, protocol: Protocol, size: int) -> ImageFeatures:
    """Encode an image in a frame of ``size`` pixels; ``square`` encodes the squashed image."""
    if protocol == "whole":
        return model.encode(encoded, size)
    image = Image.fromarray(decode(encoded, model.limits))
    return model.encode(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)), size)
