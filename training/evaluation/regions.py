"""Parts of photographs as questions: what they are, and which photographs they find.

On the countable objects of coco_multi. A objects of a photograph, B photographs, L names, D width,
Q queries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import Area, combine, embed_areas
from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.io.masks import mask_box
from samclip_core.model import SamClip
from training.data.annotations import class_names, decoded
from training.data.sample import Sample
from training.evaluation.instances import things
from training.evaluation.measures import mean_precision, ratio_figures
from training.evaluation.suite import Metrics, Options, own_samples, progress

LAST_THING = 90
"""COCO's classes up to this one are countable."""
FIRST = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class _Photo:
    """The vectors of a photograph, and of its objects by box and by mask, with their classes."""

    image_D: NDArray[np.float32]
    box_AD: NDArray[np.float32]
    mask_AD: NDArray[np.float32]
    class_A: NDArray[np.intp]


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return the figures of classification, of search, and of search with a text as well."""
    names = {
        value: name
        for value, name in class_names(options.root, "coco_multi").items()
        if value <= LAST_THING
    }
    samples = own_samples(options, "coco_multi", usable=things)
    photos = [_photo(model, sample, list(names)) for sample in progress(samples, "regions")]
    text_LD = class_embeddings(model.embed_text, [*names.values()], model.config.templates)
    metrics: Metrics = {
        "coco_multi_region_objects": sum(len(photo.class_A) for photo in photos),
        "coco_multi_region_photographs": len(photos),
    }
    for kind in ("box", "mask"):
        metrics |= _classified(photos, kind, text_LD) | _found(photos, kind)
    return metrics | _with_text(photos, text_LD, model.config.fitted.text_weight)


def _photo(model: SamClip, sample: Sample, values: list[int]) -> _Photo:
    objects = things(sample)
    masks = decoded([thing["segmentation"] for thing in objects])
    features = model.encode(sample.encoded, model.config.size_of("semantic"))
    boxes = [Area(box=mask_box(mask_HW)) for mask_HW in masks]
    return _Photo(
        model.embed_image(sample.encoded),
        np.stack([*embed_areas(features, boxes)]),
        np.stack([*embed_areas(features, map(Area.of_mask, masks))]),
        np.array([values.index(thing["category_id"]) for thing in objects]),
    )


def _classified(photos: Sequence[_Photo], kind: str, text_LD: NDArray[np.float32]) -> Metrics:
    """Return top-1, with its 95 % interval over photographs, and top-5 over all names."""
    hits_B2 = np.zeros((len(photos), 2))
    for hits_2, photo in zip(hits_B2, photos, strict=True):
        cosine_AL = _areas(photo, kind) @ text_LD.T
        own_A1 = np.take_along_axis(cosine_AL, photo.class_A[:, None], axis=1)
        rank_A = (cosine_AL >= own_A1).sum(axis=1)
        hits_2[:] = (rank_A <= 1).sum(), (rank_A <= 5).sum()
    count_B = np.array([len(photo.class_A) for photo in photos])
    name = f"coco_multi_region_{kind}"
    top5 = float(hits_B2[:, 1].sum() / count_B.sum())
    return ratio_figures(f"{name}_top1", hits_B2[:, 0], count_B) | {f"{name}_top5": top5}


def _found(photos: Sequence[_Photo], kind: str) -> Metrics:
    """Return recall at k of other photographs with the class of a region, averaged over classes."""
    image_BD, holds_BL = _gallery(photos)
    recalls: dict[int, list[list[bool]]] = {}
    for own, photo in enumerate(photos):
        for vector_D, label in zip(_areas(photo, kind), photo.class_A.tolist(), strict=True):
            hits_B = _ranked(image_BD @ vector_D, holds_BL[:, label], own)
            if hits_B.any():
                recalls.setdefault(label, []).append([bool(hits_B[:k].any()) for k in FIRST])
    recall_K = np.mean([np.mean(rows, axis=0) for rows in recalls.values()], axis=0)
    named = zip(FIRST, recall_K, strict=True)
    return {f"coco_multi_region_{kind}_to_image_r{k}": float(recall) for k, recall in named}


def _with_text(
    photos: Sequence[_Photo], text_LD: NDArray[np.float32], text_weight: float
) -> Metrics:
    """Return the mean average precision for photographs with two classes.

    One class is asked for by a region or photograph without the other class, the other by its
    name. Averaged over the pairs of classes that some photograph holds. ``alone`` rows have one
    part of the query only.
    """
    image_BD, holds_BL = _gallery(photos)
    both = partial(combine, text_weight=text_weight)
    ways: dict[str, Callable[[_Photo, int, int], NDArray[np.float32]]] = {
        "text_alone": lambda photo, area, other: text_LD[other],
        "region_alone": lambda photo, area, other: photo.mask_AD[area],
        "region_with_text": lambda photo, area, other: both(photo.mask_AD[area], text_LD[other]),
        "image_alone": lambda photo, area, other: photo.image_D,
        "image_with_text": lambda photo, area, other: both(photo.image_D, text_LD[other]),
    }
    figures: dict[str, dict[tuple[int, int], list[float]]] = {way: {} for way in ways}
    for own, area, label, other in _pairs(photos, holds_BL):
        both_B = holds_BL[:, label] & holds_BL[:, other]
        for way, query in ways.items():
            hits_B = _ranked(image_BD @ query(photos[own], area, other), both_B, own)
            figures[way].setdefault((label, other), []).append(mean_precision(hits_B))
    return {
        f"coco_multi_two_classes_{way}_map": float(np.mean([*map(np.mean, pairs.values())]))
        for way, pairs in figures.items()
    }


def _pairs(
    photos: Sequence[_Photo], holds_BL: NDArray[np.bool_]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield photograph, object and its class, and another class that the photograph lacks.

    Some other photograph holds both classes.
    """
    together_LL = (holds_BL.T.astype(int) @ holds_BL.astype(int)) > 0
    for own, photo in enumerate(photos):
        for area, label in enumerate(photo.class_A.tolist()):
            for other in np.flatnonzero(together_LL[label] & ~holds_BL[own]).tolist():
                yield own, area, label, other


def _areas(photo: _Photo, kind: str) -> NDArray[np.float32]:
    return photo.box_AD if kind == "box" else photo.mask_AD


def _gallery(photos: Sequence[_Photo]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the vectors of the photographs, B×D, and which classes each of them holds, B×L."""
    holds_BL = np.zeros((len(photos), LAST_THING), np.bool_)
    for holds_L, photo in zip(holds_BL, photos, strict=True):
        holds_L[photo.class_A] = True
    return np.stack([photo.image_D for photo in photos]), holds_BL


def _ranked(
    cosine_B: NDArray[np.floating], wanted_B: NDArray[np.bool_], own: int
) -> NDArray[np.bool_]:
    """Return whether each photograph is wanted, the nearest first, without the query's own."""
    order_B = np.argsort(-cosine_B, kind="stable")
    return wanted_B[order_B[order_B != own]]
