"""Text prompts: how many present objects are found and fitted, and how many absent ones refused.

Each photograph of coco_multi with outlined things is asked for every name of its things, and for
``ABSENT`` names of the set that none of its things has, each in a request of its own. Of each thing
that an answer has, the best mask counts. COCO's names taught `edge`, and rival with every text; so
photographs of clothes are asked for names that share no word with those (``new_names``).
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.answers.evidence import BESIDE
from samclip_core.answers.things import best_of_each
from samclip_core.answers.vocabularies import readable
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import (
    class_names,
    decoded,
    imagenet_names,
    label_map,
    thing_names,
)
from training.data.sample import Sample
from training.evaluation.instances import framed
from training.evaluation.measures import iou, ratio_figures
from training.evaluation.suite import Metrics, Options, each, own_samples, scored

SOURCE, CLOTHES = "coco_multi", "ccp_clothing"
ABSENT = 3
FITS = 0.5
"""A mask fits if its IoU with one thing, or with all things of that name, is at least this."""
LARGE = 0.05
"""A name is large if one of its things, or all together, covers this much of the photograph."""


Truths = Mapping[str, Sequence[NDArray[np.bool_]]]
"""The masks that fit each name of a photograph."""


class Counts(NamedTuple):
    """Numbers of one photograph's names: present, and of these found and fitted; absent, refused.

    ``large`` and ``large_fitted`` count the present names that are large; ``masks`` are those of
    present names, and ``fits`` those of them that fit.
    """

    present: int
    found: int
    fitted: int
    absent: int
    refused: int
    large: int
    large_fitted: int
    masks: int
    fits: int


def own_set(model: SamClip, options: Options) -> Metrics:
    """Return the figures of COCO's names, and of new ones (``words_new``)."""
    new = new_names(options.root)
    own = _figures("words", model, options, SOURCE, truths, thing_names(options.root, SOURCE))
    return own | _figures("words_new", model, options, CLOTHES, partial(areas, new), new.values())


def new_names(root: Path) -> dict[int, str]:
    """Return the classes of clothes without a word of those that taught or that rival, by index."""
    known = [*class_names(root, SOURCE).values(), *imagenet_names(root), *BESIDE]
    words = set().union(*map(_words, known))
    named = class_names(root, CLOTHES).items()
    return {index: name for index, name in named if index and not _words(name) & words}


def _words(name: str) -> set[str]:
    """Return the words of a name, all in the singular as far as a final s makes the plural."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", readable(name).lower())}


def _figures(
    prefix: str,
    model: SamClip,
    options: Options,
    source: str,
    present: Callable[[Sample], Truths],
    names: Collection[str],
) -> Metrics:
    """Return the shares of present names found and fitted, and of absent names refused.

    Also the masks per found name (``_masks_per_name``), and the share of masks that fit
    (``_masks_fit``). With 95 % bootstrap intervals over photographs, and the numbers of names.
    """
    samples = own_samples(options, source, usable=present)
    score = each(partial(measure, present, [*names]))
    rows = scored(model, samples, framed, score, prefix)
    present_N, found_N, fitted_N, absent_N, refused_N, *others = np.array(rows).T
    large_N, large_fitted_N, masks_N, fits_N = others
    return (
        ratio_figures(f"{prefix}_found", found_N, present_N)
        | ratio_figures(f"{prefix}_fitted", fitted_N, present_N)
        | ratio_figures(f"{prefix}_refused", refused_N, absent_N)
        | ratio_figures(f"{prefix}_large_fitted", large_fitted_N, large_N)
        | ratio_figures(f"{prefix}_masks_per_name", masks_N, found_N)
        | ratio_figures(f"{prefix}_masks_fit", fits_N, masks_N)
        | {f"{prefix}_present": int(present_N.sum()), f"{prefix}_absent": int(absent_N.sum())}
        | {f"{prefix}_large": int(large_N.sum()), f"{prefix}_photographs": len(samples)}
    )


def measure(
    truths: Callable[[Sample], Truths],
    names: Sequence[str],
    model: SamClip,
    sample: Sample,
    features: ImageFeatures,
) -> Counts:
    """Ask for the names of one photograph, and for some that are not there."""
    present = truths(sample)
    absent = absent_names(sample, present, names)
    answers = {name: best_of_each(model.find(features, [name])[0]) for name in (*present, *absent)}
    fits = {
        name: [any(iou(mask.mask_HW, truth) >= FITS for truth in masks) for mask in answers[name]]
        for name, masks in present.items()
    }
    large = [name for name, masks in present.items() if max(map(np.mean, masks)) >= LARGE]
    return Counts(
        present=len(present),
        found=sum(bool(answers[name]) for name in present),
        fitted=sum(map(any, fits.values())),
        absent=len(absent),
        refused=sum(not answers[name] for name in absent),
        large=len(large),
        large_fitted=sum(any(fits[name]) for name in large),
        masks=sum(map(len, fits.values())),
        fits=sum(map(sum, fits.values())),
    )


def truths(sample: Sample) -> dict[str, list[NDArray[np.bool_]]]:
    """Return the masks that fit each name of a photograph's things: each thing, and all together.

    A crowd counts only in the mask of all together.
    """
    outlined: dict[str, list[dict[str, Any]]] = {}
    for instance in sample.info.get("instances", ()):
        outlined.setdefault(instance["category"], []).append(instance)
    masks = {}
    for name, instances in sorted(outlined.items()):
        single = [i["segmentation"] for i in instances if not i["iscrowd"]]
        if single:
            whole = coco_mask.merge([i["segmentation"] for i in instances])
            masks[name] = decoded((*single, whole))
    return masks


def areas(names: Mapping[int, str], sample: Sample) -> Truths:
    """Return the masks that fit each class of a label map: each connected piece, and all."""
    labels_HW, masks = label_map(sample), {}
    for index in names.keys() & {*np.unique(labels_HW).tolist()}:
        whole_HW = labels_HW == index
        count, piece_HW = cv2.connectedComponents(whole_HW.astype(np.uint8))
        masks[names[index]] = [whole_HW, *(piece_HW == n for n in range(1, count))]
    return dict(sorted(masks.items()))


def absent_names(sample: Sample, present: Truths, names: Sequence[str]) -> list[str]:
    """Return ``ABSENT`` names that nothing in a photograph has, the same in every run.

    A crowd has its name, too, although nothing fits it alone.
    """
    crowds = {instance["category"] for instance in sample.info.get("instances", ())}
    there = crowds | present.keys()
    random = np.random.default_rng(list(sample.key.encode()))
    others = [name for name in names if name not in there]
    return [str(name) for name in random.choice(others, ABSENT, replace=False)]
