"""Image-text retrieval, and photographs found by the names of their things.

As in ``classification``, figures are of whole photographs, ``paper_…`` of their central squares.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.objects import choose
from samclip_core.answers.zero_shot import class_embeddings, unit
from samclip_core.encoder import Prepared
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.evaluation.batches import scored
from training.evaluation.classification import WAYS, Show
from training.evaluation.layouts import captioned
from training.evaluation.measures import ranks, ratio_figures
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress
from training.evaluation.words import truths

FIRST = (1, 5, 10)
Described = tuple[Callable[[], bytes], list[str]]


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return recall on the captioned photographs of coco_multi."""
    samples = own_samples(options, "coco_multi", usable=lambda sample: sample.info["captions"])
    described = [(partial(bytes, sample.encoded), sample.info["captions"]) for sample in samples]
    return _recall(model, options, described, {"coco_multi_": bytes})


def by_names(model: SamClip, options: Options) -> Metrics:
    """Return the mean recall at 10 over the names of the things in photographs of coco_multi.

    Each name searches among all these photographs, once by their vectors and once by those of their
    best objects. With 95 % bootstrap intervals over names, also of the difference.
    """
    samples = own_samples(options, "coco_multi", usable=truths)
    present = [truths(sample).keys() for sample in samples]
    names = sorted(set().union(*present))
    named_NB = np.array([[name in there for there in present] for name in names])
    text_ND = class_embeddings(model.embed_text, names, model.config.templates)
    columns: dict[str, list[NDArray[np.floating]]] = {"whole": [], "objects": []}
    for sample in progress(samples, "objects"):
        columns["whole"].append(text_ND @ model.embed_image(sample.encoded))
        features = model.regions(sample.encoded)
        object_RD = unit(features.regions.clip_RD[choose(features.regions, features.geometry)])
        columns["objects"].append((text_ND @ object_RD.T).max(axis=1, initial=-1))
    whole_N, objects_N = (
        found_first(np.stack(scores, axis=1), named_NB) for scores in columns.values()
    )
    each_N = np.ones(len(names))
    return {
        **ratio_figures("by_whole_r10", whole_N, each_N),
        **ratio_figures("by_objects_r10", objects_N, each_N),
        **ratio_figures("by_objects_more", objects_N - whole_N, each_N),
        "names": len(names),
        "photographs": len(samples),
    }


def found_first(
    score_NB: NDArray[np.floating], named_NB: NDArray[np.bool_], most: int = 10
) -> NDArray[np.floating]:
    """Return for each name the share of its photographs, at most ``most``, among the first."""
    first_NB = np.argsort(-score_NB, axis=1, kind="stable")[:, :most]
    found_N = np.take_along_axis(named_NB, first_NB, axis=1).sum(axis=1)
    return found_N / np.minimum(named_NB.sum(axis=1), most)


def public(model: SamClip, options: Options) -> Metrics:
    """Return recall on Flickr30k or COCO captions (paper, table 1), by both protocols."""
    chosen = limited(captioned(options.root), options.limit)
    described = [(item.path.read_bytes, item.captions) for item in chosen]
    return _recall(model, options, described, WAYS)


def _recall(
    model: SamClip, options: Options, described: Sequence[Described], shown: Mapping[str, Show]
) -> Metrics:
    """Return recall of each way to show a photograph, after the way's prefix."""
    captions = [(image, text) for image, (_, texts) in enumerate(described) for text in texts]
    text_TD = model.embed_text([text for _, text in captions])
    image_T = np.array([image for image, _ in captions])
    metrics: Metrics = {}
    for prefix, show in shown.items():
        frame, what = partial(_framed, show), f"{prefix}retrieval"
        image_BD = np.stack(scored(model, options, described, frame, _vectors, what))
        rank_T, rank_B = ranks(text_TD @ image_BD.T, image_T)
        metrics |= {f"{prefix}text_to_image_r{k}": float((rank_T < k).mean()) for k in FIRST}
        metrics |= {f"{prefix}image_to_text_r{k}": float((rank_B < k).mean()) for k in FIRST}
    return metrics


def _framed(show: Show, model: SamClip, picture: Described) -> Prepared:
    return model.prepare(show(picture[0]()), model.config.size_of("retrieval"))


def _vectors(
    model: SamClip, batch: Sequence[tuple[Described, ImageFeatures]]
) -> list[NDArray[np.float32]]:
    return [model.embed_image(features) for _, features in batch]
