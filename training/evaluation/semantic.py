"""Text-prompted semantic segmentation, measured by mean IoU.

Two protocols: ``served`` answers as the service does; ``paper`` squashes the image to the square
model frame, as the paper does at 448 (section 4.2 and appendix C), and reads the CLIP head's map as
it is, without the attention of the SAM embedding, which the paper does not have.

Three rules for the background of a set: ``ignored``, its pixels do not count; ``clippy``, it is a
class that "background" or one of 39 further words wins (the paper's protocol for VOC, after CLIPpy,
arXiv 2210.09996); ``clear_win``, it is the class of pixels that no label wins clearly
(``samclip_core.answers.semantic``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samclip_core.answers.map_prompts import Component, mask_prompt
from samclip_core.answers.semantic import SegmentText
from samclip_core.encoder import Prepared
from samclip_core.geometry import FloatArray
from samclip_core.io.image import decode
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt
from training.data.annotations import class_names, label_map
from training.data.sample import Sample
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import class_pixels, miou_interval, semantic_figures
from training.evaluation.suite import (
    Metrics,
    Options,
    Prompts,
    Protocol,
    each,
    own_samples,
    scored,
)

SOURCES = ("coco_multi", "labelmefacade", "camvid")
HEADS: dict[str, Prompts | None] = {
    "": None,
    "_two_heads": "own",
    "_two_heads_paper_prompts": "paper",
}
"""The prompts of Head_SAM by the part of a figure's name; None: the CLIP head alone."""
MOST_POINTS = 3
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
    """Return the figures of our own sets: the CLIP head by each protocol, both heads as served."""
    metrics: Metrics = {}
    for source in SOURCES:
        data = own_set(options, source)
        refined: tuple[Protocol, ...] = ("served",) if model.config.masks else ()
        metrics |= _figures(model, data, options, {"ignored": "_semantic"}, refined)
    return metrics


def public(data: LabelledSet, model: SamClip, options: Options) -> Metrics:
    """Return the figures of a public set, by the CLIP head and with ``refine`` also by both heads.

    A set with a background is measured by each rule that applies to it.
    """
    refined = get_args(Protocol) if options.refine else ()
    return _figures(model, data, options, _rules(data), refined)


def _figures(
    model: SamClip,
    data: LabelledSet,
    options: Options,
    rules: Mapping[Background, str],
    refined: Sequence[Protocol],
) -> Metrics:
    """Return the figures by each protocol and rule; both heads by the ``refined`` protocols."""
    metrics: Metrics = {}
    heads = {
        head: prompts
        for head, prompts in HEADS.items()
        if prompts in (None, "own", options.prompts)
    }
    for protocol in (options.protocol,) if options.protocol else get_args(Protocol):
        of_protocol = "" if protocol == "served" else f"_{protocol}"
        shown = heads if protocol in refined else {"": None}
        for rule, suffix in rules.items():
            pixels = {h: measure(model, data, protocol, p, rule) for h, p in shown.items()}
            names = {head: f"{data.name}{suffix}{head}{of_protocol}" for head in pixels}
            for head, name in names.items():
                metrics |= semantic_figures(name, pixels[head])
            if "paper" in shown.values():
                own, paper = [*pixels.values()][1:]
                low, high = miou_interval(np.array(paper), np.array(own))
                less = f"{names['_two_heads_paper_prompts']}_less_own"
                metrics |= {f"{less}_low": low, f"{less}_high": high}
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


class _Asked(NamedTuple):
    """What each photograph of a set is asked, and the values of the classes that count."""

    labels: list[str]
    values: list[int]
    rule: Background
    prompts: Prompts | None


def measure(
    model: SamClip,
    data: LabelledSet,
    protocol: Protocol = "served",
    prompts: Prompts | None = None,
    rule: Background = "ignored",
) -> list[NDArray[np.int64]]:
    """Return the pixel counts 3×C of each photograph of a set (``class_pixels``)."""
    labels = list(data.prompts if rule == "clippy" else data.classes.values())
    asked = _Asked(labels, data.values(background=rule != "ignored"), rule, prompts)
    size = model.config.image_size if prompts else model.config.size_of("semantic")
    read, score = partial(framed, protocol, size), each(partial(_count, asked))
    what = f"semantic {data.name} {protocol} prompts={prompts}"
    own = model.config
    if protocol == "paper":
        model.config = replace(own, calibration=replace(own.fitted, attention=None))
    try:
        return scored(model, data.pictures, read, score, what)
    finally:
        model.config = own


def _count(
    asked: _Asked, model: SamClip, picture: Mapped, features: ImageFeatures
) -> NDArray[np.int64]:
    truth_HW, clear_win = picture.labels(), asked.rule == "clear_win"
    if asked.prompts == "paper":
        answer = model.run(features, DrawnPoints(asked.labels, clear_win, refine=True))
    else:
        answer = model.segment_text(features, asked.labels, clear_win, asked.prompts is not None)
    answer_HW = answer.label_map_HW
    # From indices of labels to those of the evaluated classes, of which background is the first.
    if clear_win:
        answer_HW = answer_HW + 1
    elif asked.rule == "clippy":
        answer_HW = np.where(answer_HW < len(asked.values), answer_HW, 0)
    if answer_HW.shape != truth_HW.shape:
        size_wh = (truth_HW.shape[1], truth_HW.shape[0])
        answer_HW = cv2.resize(answer_HW, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
    return class_pixels(truth_HW, answer_HW, asked.values)


class DrawnPoints(SegmentText):
    """Both heads with the paper's prompts (section 4.4, appendix C): one per class.

    Each has the map of its class and one to three points, drawn in proportion to its probability
    where it wins. A random number decides how many.
    """

    def pieces(
        self, features: ImageFeatures, probability_Css: FloatArray, won_Css: NDArray[np.bool_]
    ) -> list[Component]:
        random, side = np.random.default_rng(0), won_Css.shape[-1]
        cell = features.geometry.size / side
        found = []
        for index in np.flatnonzero(won_Css.any(axis=(1, 2))).tolist():
            map_ss, won_ss = probability_Css[index], won_Css[index]
            count = min(int(random.integers(1, MOST_POINTS + 1)), int(won_ss.sum()))
            share_N = map_ss[won_ss].astype(np.float64)
            drawn = random.choice(len(share_N), count, replace=False, p=share_N / share_N.sum())
            points = tuple((x + 0.5, y + 0.5) for y, x in np.argwhere(won_ss)[drawn].tolist())
            prompt = Prompt(
                tuple((x * cell, y * cell) for x, y in points), mask_input_hw=mask_prompt(map_ss)
            )
            found.append(Component(index, float(share_N.mean()), won_ss, prompt))
        return found


def framed(protocol: Protocol, size: int, model: SamClip, picture: Mapped) -> Prepared:
    """Read an image into a frame of ``size`` pixels; ``paper`` squashes it to the whole frame."""
    encoded = picture.read()
    if protocol == "served":
        return model.prepare(encoded, size)
    image = Image.fromarray(decode(encoded, model.limits))
    return model.prepare(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)), size)
