"""Whole photographs by names and captions: zero-shot classification and retrieval.

``top1``, ``top5`` and recall are of whole photographs, padded to the model's frame as in serving.
CLIP models are published with figures of the central square (short side resized, centre cropped),
as the paper's are: ``paper_top1`` and its like.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samclip_core import guarded
from samclip_core.encoder import Prepared
from samclip_core.io.image import ImageLimits, Readable, decode
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import class_names
from training.evaluation.layouts import Captioned, Classified
from training.evaluation.measures import ranks
from training.evaluation.suite import (
    Metrics,
    Options,
    each,
    own_samples,
    scored,
)

CLASSIFIED = ("caltech101", "imagen200", "imagenet1k_sample")
FIRST = (1, 5, 10)
_Read = Callable[[], bytes]
"""A reader of the encoded file."""
Show = Callable[[bytes], Readable]
"""What a network is shown of an encoded photograph."""


def classify_own_sets(
    model: SamClip, options: Options, sources: Sequence[str] = CLASSIFIED
) -> Metrics:
    """Return top-1 accuracy on each of our own sets, over the set's class names."""
    metrics = {}
    for source in sources:
        names = class_names(options.root, source)
        index_of = {value: index for index, value in enumerate(names)}
        pictures = [
            (partial(bytes, sample.encoded), index_of[sample.class_index])
            for sample in own_samples(options, source)
        ]
        figures = _top_k(model, pictures, list(names.values()), {"": bytes})
        metrics[f"{source}_top1"] = figures["top1"]
    return metrics


def names(data: Classified, model: SamClip, options: Options) -> Metrics:
    """Return both accuracies on a public set with a class per photograph, by both protocols."""
    pictures = [(partial(guarded.read, path), index) for path, index in data.pictures]
    return _top_k(model, pictures, data.names, WAYS)


def _top_k(
    model: SamClip,
    pictures: Sequence[tuple[_Read, int]],
    names: list[str],
    shown: Mapping[str, Show],
) -> Metrics:
    """Return ``top1`` and ``top5`` of each way to show a picture, after the way's prefix."""
    labels_LD = model.embed_labels(names)
    metrics = {}
    for prefix, show in shown.items():
        frame, score = partial(_framed, show, "classify"), each(partial(_best, labels_LD))
        rows = scored(model, pictures, frame, score, f"{prefix}classification")
        metrics[f"{prefix}top1"] = float(np.mean([row[0] for row in rows]))
        metrics[f"{prefix}top5"] = float(np.mean([row.any() for row in rows]))
    return metrics


def _framed(
    show: Show,
    task: Literal["classify", "retrieval"],
    model: SamClip,
    picture: tuple[_Read, object],
) -> Prepared:
    return model.prepare(show(picture[0]()), model.config.size_of(task))


def _best(
    labels_LD: NDArray[np.float32],
    model: SamClip,
    picture: tuple[_Read, int],
    features: ImageFeatures,
) -> NDArray[np.bool_]:
    """Return whether each of a picture's five best names is right, best first."""
    cosine_L = labels_LD @ model.embed_image(features)
    return np.asarray(np.argsort(-cosine_L, kind="stable")[:5] == picture[1])


def centre_square(encoded: bytes) -> NDArray[np.uint8]:
    """Return the central square of a picture, L×L×3, as long as its shorter side."""
    image_HW3 = decode(encoded, ImageLimits())
    height, width = image_HW3.shape[:2]
    side = min(height, width)
    y, x = round((height - side) / 2), round((width - side) / 2)  # as torchvision rounds
    return np.ascontiguousarray(image_HW3[y : y + side, x : x + side])


WAYS: Mapping[str, Show] = {"": bytes, "paper_": centre_square}
"""The ways to show a photograph of a public set, by the prefix of their figures."""


def caption_own_set(model: SamClip, options: Options) -> Metrics:
    """Return recall on the captioned photographs of coco_multi."""
    samples = own_samples(options, "coco_multi", usable=lambda sample: sample.info["captions"])
    described = [(partial(bytes, sample.encoded), sample.info["captions"]) for sample in samples]
    return _recall(model, described, {"coco_multi_": bytes})


def captions(data: Captioned, model: SamClip, options: Options) -> Metrics:
    """Return recall on a public set with captions (paper, table 1), by both protocols."""
    described = [(partial(guarded.read, path), texts) for path, texts in data.pictures]
    return _recall(model, described, WAYS)


def _recall(
    model: SamClip,
    described: Sequence[tuple[_Read, list[str]]],
    shown: Mapping[str, Show],
) -> Metrics:
    """Return recall of each way to show a photograph, after the way's prefix."""
    captions = [(image, text) for image, (_, texts) in enumerate(described) for text in texts]
    text_TD = model.embed_text([text for _, text in captions])
    image_T = np.array([image for image, _ in captions])
    metrics: Metrics = {}
    for prefix, show in shown.items():
        frame, what = partial(_framed, show, "retrieval"), f"{prefix}retrieval"
        vector = each(lambda model, _, features: model.embed_image(features))
        image_BD = np.stack(scored(model, described, frame, vector, what))
        rank_T, rank_B = ranks(text_TD @ image_BD.T, image_T)
        metrics |= {f"{prefix}text_to_image_r{k}": float((rank_T < k).mean()) for k in FIRST}
        metrics |= {f"{prefix}image_to_text_r{k}": float((rank_B < k).mean()) for k in FIRST}
    return metrics
