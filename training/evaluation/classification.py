"""Zero-shot classification: top-1 and top-5 accuracy over class names.

``top1`` and ``top5`` are of whole photographs, padded to the model's frame as in serving. CLIP
models are published with figures of the central square (short side resized, centre cropped), as the
paper's are: ``paper_top1`` and ``paper_top5``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.encoder import Prepared
from samclip_core.io.image import ImageLimits, Readable, decode
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import class_names
from training.evaluation.batches import scored
from training.evaluation.layouts import Classified, class_folders, read_places365
from training.evaluation.suite import Metrics, Options, limited, own_samples

OWN_SETS = ("caltech101", "imagen200", "imagenet1k_sample")
_Picture = tuple[Callable[[], bytes], int]
"""A reader of the encoded file, and the index of its class."""
Show = Callable[[bytes], Readable]
"""What a network is shown of an encoded photograph."""


def own_sets(model: SamClip, options: Options, sources: Sequence[str] = OWN_SETS) -> Metrics:
    """Return top-1 accuracy on each of our own sets, over the set's class names."""
    metrics = {}
    for source in sources:
        names = class_names(options.root, source)
        index_of = {value: index for index, value in enumerate(names)}
        pictures = [
            (partial(bytes, sample.encoded), index_of[sample.class_index])
            for sample in own_samples(options, source)
        ]
        found = _top_k(model, options, pictures, list(names.values()), {"": bytes})
        metrics[f"{source}_top1"] = found["top1"]
    return metrics


def folders(model: SamClip, options: Options) -> Metrics:
    """Return both accuracies on a folder per class, ImageNet and ImageNet-v2, by both protocols."""
    val = options.root / "val"
    return _public(model, class_folders(val if val.is_dir() else options.root), options)


def places365(model: SamClip, options: Options) -> Metrics:
    """Return both accuracies on Places365 in either of its layouts, by both protocols."""
    return _public(model, read_places365(options.root), options)


def _public(model: SamClip, classified: Classified, options: Options) -> Metrics:
    chosen = limited(classified.pictures, options.limit)
    pictures = [(path.read_bytes, index) for path, index in chosen]
    return _top_k(model, options, pictures, classified.names, WAYS)


def _top_k(
    model: SamClip,
    options: Options,
    pictures: Sequence[_Picture],
    names: list[str],
    shown: Mapping[str, Show],
) -> Metrics:
    """Return ``top1`` and ``top5`` of each way to show a picture, after the way's prefix."""
    labels_LD = class_embeddings(model.embed_text, names, model.config.templates)
    metrics = {}
    for prefix, show in shown.items():
        frame, score = partial(_framed, show), partial(_best, labels_LD)
        rows = scored(model, options, pictures, frame, score, f"{prefix}classification")
        metrics[f"{prefix}top1"] = float(np.mean([row[0] for row in rows]))
        metrics[f"{prefix}top5"] = float(np.mean([row.any() for row in rows]))
    return metrics


def _framed(show: Show, model: SamClip, picture: _Picture) -> Prepared:
    return model.prepare(show(picture[0]()), model.config.size_of("classify"))


def _best(
    labels_LD: NDArray[np.float32],
    model: SamClip,
    batch: Sequence[tuple[_Picture, ImageFeatures]],
) -> list[NDArray[np.bool_]]:
    """Return for each picture whether each of its five best names is right, best first."""
    cosines = [labels_LD @ model.embed_image(features) for _, features in batch]
    best = [np.argsort(-cosine_L, kind="stable")[:5] for cosine_L in cosines]
    return [best_5 == truth for best_5, ((_, truth), _) in zip(best, batch, strict=True)]


def centre_square(encoded: bytes) -> NDArray[np.uint8]:
    """Return the central square of a picture, L×L×3, as long as its shorter side."""
    image_HW3 = decode(encoded, ImageLimits())
    height, width = image_HW3.shape[:2]
    side = min(height, width)
    y, x = round((height - side) / 2), round((width - side) / 2)  # as torchvision rounds
    return np.ascontiguousarray(image_HW3[y : y + side, x : x + side])


WAYS: Mapping[str, Show] = {"": bytes, "paper_": centre_square}
"""The ways to show a photograph of a public set, by the prefix of their figures."""
