"""Text-prompted semantic segmentation, measured by mean IoU.

Three protocols (paper, section 4.2 and appendix C): ``whole`` encodes the image as the service
does; ``square`` squashes it to the square model frame, as the paper does at 448; ``sliding`` keeps
its aspect ratio, scales its shorter side to the frame and averages overlapping windows.

Three rules for the background of a set: ``ignored``, its pixels do not count; ``clippy``, it is a
class that "background" or one of 39 further words wins (the paper's protocol for VOC, after CLIPpy,
arXiv 2210.09996); ``clear_win``, it is the class of pixels that no label wins clearly
(``samclip_core.answers.semantic``).
"""

import math
from collections.abc import Callable
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
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import class_pixels
from training.evaluation.overlap import semantic_figures
from training.evaluation.suite import (
    Metrics,
    Options,
    Protocol,
    limited,
    own_samples,
    progress,
)

OVERLAP = 1 / 3  # of neighbouring windows
HEADS = {"": False, "_two_heads": True}
Background = Literal["ignored", "clippy", "clear_win"]


def own_set(options: Options, source: str, split: str = "val") -> LabelledSet:
    """Read one of our own sets; of coco_multi, only the fully labelled images."""
    samples = own_samples(
        options,
        source,
        split,
        lambda sample: source != "coco_multi" or sample.info["label_kind"] == "panoptic",
    )
    pictures = [Mapped(partial(bytes, s.encoded), partial(label_map, s)) for s in samples]
    return LabelledSet(source, class_names(options.root, source), pictures)


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return the figures of our own sets, by the CLIP head alone and by both heads."""
    metrics: Metrics = {}
    for source in ("coco_multi", "labelmefacade", "camvid"):
        data = own_set(options, source)
        for head, refine in HEADS.items():
            name = f"{source}_semantic{head}{_suffix(options)}"
            metrics |= semantic_figures(name, measure(model, data, options.protocol, refine))
    return metrics


def public(read: Callable[[Path], LabelledSet], model: SamClip, options: Options) -> Metrics:
    """Return the figures of a public set, by the CLIP head and with ``refine`` also by both heads.

    A set with a background is measured by each rule that applies to it.
    """
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
    """Encode an image in frames of ``size`` pixels; ``square`` encodes the squashed image."""
    if protocol == "whole":
        return model.encode(encoded, size)
    image_HW3 = decode(encoded, model.limits)
    if protocol == "sliding":
        return sliding(model, image_HW3, size)
    return model.encode(_resized(image_HW3, size, size), size)


def sliding(model: SamClip, image_HW3: NDArray[np.uint8], size: int) -> ImageFeatures:
    """Encode an image with a dense CLIP map averaged over windows as large as the model frame.

    The windows share one grid of cells, so that their vectors can be averaged per cell. Logits are
    linear in the vectors, so this averages logits.
    """
    whole = model.encode(image_HW3, size)
    assert whole.clip_dense_Dhw is not None
    width, side, _ = whole.clip_dense_Dhw.shape
    frame = whole.geometry
    longer, shorter = max(frame.height, frame.width), min(frame.height, frame.width)
    cells = math.ceil(side * longer / shorter)
    # Rounding to the grid may cost the shorter side one cell.
    while min(frame.grid(cells)) < side:
        cells += 1
    rows, columns = frame.grid(cells)
    scale = cells / side
    scaled = _resized(
        image_HW3, round(frame.input_height * scale), round(frame.input_width * scale)
    )
    bottom, right = (_pixel(count, size, side) for count in (rows, columns))
    margin = [(0, bottom - scaled.shape[0]), (0, right - scaled.shape[1]), (0, 0)]
    scaled = np.pad(scaled, margin, mode="edge")
    dense_Dhw = np.zeros((width, cells, cells), np.float32)
    count_hw = np.zeros((cells, cells), np.float32)
    for top in _starts(rows, side):
        for left in _starts(columns, side):
            y, x = _pixel(top, size, side), _pixel(left, size, side)
            window = model.encode(scaled[y : y + size, x : x + size], size)
            dense_Dhw[:, top : top + side, left : left + side] += window.clip_dense_Dhw
            count_hw[top : top + side, left : left + side] += 1
    return replace(whole, clip_dense_Dhw=dense_Dhw / np.maximum(count_hw, 1))


def _starts(cells: int, side: int) -> list[int]:
    """Return starts of overlapping windows of ``side`` cells; the last ends at the edge."""
    step = max(1, round(side * (1 - OVERLAP)))
    return sorted({min(start, cells - side) for start in range(0, cells, step)})


def _pixel(cell: int, size: int, side: int) -> int:
    return int(cell * size / side + 0.5)


def _resized(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BILINEAR))
