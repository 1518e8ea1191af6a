"""Text-prompted semantic segmentation: mean IoU over the classes that occur.

Three protocols (paper, section 4.2 and appendix C): ``whole`` encodes the image as the service
does; ``square`` squashes it to the square model frame, as the paper does at 448; ``sliding`` keeps
its aspect ratio, scales its shorter side to the frame and averages overlapping windows.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samclip_core.io.image import decode
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import class_names, label_map
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import confusion, mean_iou
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
    """Return mean IoU on our own sets, by the CLIP head alone and by both heads."""
    metrics = {}
    for source in ("coco_multi", "labelmefacade", "camvid"):
        data = own_set(options, source)
        for head, refine in HEADS.items():
            name = f"{source}_semantic{head}{_suffix(options)}_miou"
            metrics[name] = measure(model, data, options.protocol, refine)
    return metrics


def public(read: Callable[[Path], LabelledSet], model: SamClip, options: Options) -> Metrics:
    """Return mean IoU on a public set, by the CLIP head and with ``refine`` also by both heads.

    A set with a background is measured without and with it as a class: the pixels that no class
    wins clearly (``samclip_core.answers.semantic``).
    """
    data = read(options.root)
    data = replace(data, pictures=limited(data.pictures, options.limit))
    metrics = {}
    for head, refine in HEADS.items():
        if refine and not options.refine:
            continue
        for background in (False, True)[: 1 if data.background is None else 2]:
            number = f"_{len(data.classes) + background}" if data.background is not None else ""
            name = f"{data.name}{number}{head}{_suffix(options)}_miou"
            metrics[name] = measure(model, data, options.protocol, refine, background)
    return metrics


def _suffix(options: Options) -> str:
    return "" if options.protocol == "whole" else f"_{options.protocol}"


def measure(
    model: SamClip,
    data: LabelledSet,
    protocol: Protocol = "whole",
    refine: bool = False,
    background: bool = False,
) -> float:
    """Return mean IoU over a set; ``background`` counts its background value as a class."""
    values = data.values(background)
    labels = [readable(name) for name in data.classes.values()]
    size = model.config.image_size if refine else model.config.size_of("semantic")
    total_CC = np.zeros((len(values), len(values)), np.int64)
    for picture in progress(data.pictures, f"semantic {data.name} {protocol} refine={refine}"):
        truth_HW = picture.labels()
        features = encode(model, picture.read(), protocol, size)
        answer_HW = model.segment_text(features, labels, background, refine).label_map_HW
        if answer_HW.shape != truth_HW.shape:
            size_wh = (truth_HW.shape[1], truth_HW.shape[0])
            answer_HW = cv2.resize(answer_HW, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
        total_CC += confusion(truth_HW, answer_HW + background, values)
    return mean_iou(total_CC)


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


def readable(name: str) -> str:
    """Rewrite a COCO-Stuff class name in plain English: "wall-brick" becomes "brick wall"."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    kind, _, material = name.partition("-")
    return (
        f"{material} {kind}"
        if kind in ("floor", "wall") and material
        else " ".join(name.split("-"))
    )
