"""Zero-shot classification: top-1 and top-5 accuracy over class names.

``top1`` and ``top5`` are of whole photographs, padded to the model's frame as in serving. CLIP
models are published with figures of the central square (short side resized, centre cropped), as the
paper's are: ``paper_top1`` and ``paper_top5``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.io.image import ImageLimits, Readable, decode
from samclip_core.model import SamClip
from training.data.annotations import class_names
from training.evaluation.layouts import Classified, class_folders, read_places365
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress

OWN_SETS = ("caltech101", "imagen200", "imagenet1k_sample")


def own_sets(model: SamClip, options: Options, sources: Sequence[str] = OWN_SETS) -> Metrics:
    """Return top-1 accuracy on each of our own sets, over the set's class names."""
    metrics = {}
    for source in sources:
        names = class_names(options.root, source)
        index_of = {value: index for index, value in enumerate(names)}
        samples = progress(own_samples(options, source), f"classification {source}")
        pictures = ((sample.encoded, index_of[sample.class_index]) for sample in samples)
        found = _top_k(model, pictures, list(names.values()), {"": bytes})
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
    chosen = progress(limited(classified.pictures, options.limit), "classification")
    pictures = ((path.read_bytes(), index) for path, index in chosen)
    return _top_k(model, pictures, classified.names, {"": bytes, "paper_": centre_square})


def _top_k(
    model: SamClip,
    pictures: Iterable[tuple[bytes, int]],
    names: list[str],
    shown: Mapping[str, Callable[[bytes], Readable]],
) -> Metrics:
    """Return ``top1`` and ``top5`` of each way to show a picture, after the way's prefix.

    ``pictures`` has (encoded file, class index).
    """
    labels_LD = class_embeddings(model.embed_text, names, model.config.templates)
    size = model.config.size_of("classify")
    best: dict[str, list[NDArray[np.bool_]]] = {prefix: [] for prefix in shown}
    for encoded, truth in pictures:
        for prefix, show in shown.items():
            features = model.encode(show(encoded), size)
            cosine_L = labels_LD @ model.embed_image(features)
            best[prefix].append(np.argsort(-cosine_L, kind="stable")[:5] == truth)
    metrics = {}
    for prefix, rows in best.items():
        metrics[f"{prefix}top1"] = float(np.mean([row[0] for row in rows]))
        metrics[f"{prefix}top5"] = float(np.mean([row.any() for row in rows]))
    return metrics


def centre_square(encoded: bytes) -> NDArray[np.uint8]:
    """Return the central square of a picture, L×L×3, as long as its shorter side."""
    image_HW3 = decode(encoded, ImageLimits())
    height, width = image_HW3.shape[:2]
    side = min(height, width)
    y, x = round((height - side) / 2), round((width - side) / 2)  # as torchvision rounds
    return np.ascontiguousarray(image_HW3[y : y + side, x : x + side])
