"""Zero-shot classification: top-1 and top-5 accuracy over class names."""

from collections.abc import Iterable, Sequence

import numpy as np

from samclip_core.answers.zero_shot import class_embeddings
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
        metrics[f"{source}_top1"] = _top_k(model, pictures, list(names.values()))[0]
    return metrics


def folders(model: SamClip, options: Options) -> Metrics:
    """Return top-1 and top-5 accuracy on a folder per class: ImageNet and ImageNet-v2."""
    val = options.root / "val"
    return _public(model, class_folders(val if val.is_dir() else options.root), options)


def places365(model: SamClip, options: Options) -> Metrics:
    """Return top-1 and top-5 accuracy on Places365 in either of its layouts."""
    return _public(model, read_places365(options.root), options)


def _public(model: SamClip, classified: Classified, options: Options) -> Metrics:
    chosen = progress(limited(classified.pictures, options.limit), "classification")
    pictures = ((path.read_bytes(), index) for path, index in chosen)
    top = _top_k(model, pictures, classified.names)
    return {"top1": top[0], "top5": top[1]}


def _top_k(
    model: SamClip, pictures: Iterable[tuple[bytes, int]], names: list[str]
) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy; ``pictures`` has (encoded file, class index)."""
    labels_LD = class_embeddings(model.embed_text, names, model.config.templates)
    best = []
    for encoded, truth in pictures:
        features = model.encode(encoded, model.config.size_of("classify"))
        cosine_L = labels_LD @ model.embed_image(features)
        best.append(np.argsort(-cosine_L, kind="stable")[:5] == truth)
    return float(np.mean([row[0] for row in best])), float(np.mean([row.any() for row in best]))
