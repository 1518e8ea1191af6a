"""Text prompts: how many present objects are found and fitted, and how many absent ones refused.

Each photograph of coco_multi with outlined things is asked for every name of its things, and for
``ABSENT`` names of the set that none of its things has, each in a request of its own. Of each thing
that an answer has, the best mask counts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from samclip_core.answers.things import best_of_each
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import decoded, thing_names
from training.data.sample import Sample
from training.evaluation.instances import framed
from training.evaluation.measures import iou, ratio_figures
from training.evaluation.suite import Metrics, Options, each, own_samples, scored

SOURCE = "coco_multi"
ABSENT = 3
FITS = 0.5
"""A mask fits if its IoU with one thing, or with all things of that name, is at least this."""
LARGE = 0.05
"""A name is large if one of its things, or all together, covers this much of the photograph."""


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
    """Return the shares of present names found and fitted, and of absent names refused.

    Also the masks per found name (``words_masks_per_name``), and the share of masks that fit
    (``words_masks_fit``). With 95 % bootstrap intervals over photographs, and the numbers of names.
    """
    samples = own_samples(options, SOURCE, usable=truths)
    names = thing_names(options.root, SOURCE)
    rows = scored(model, samples, framed, each(partial(measure, names)), "words")
    present_N, found_N, fitted_N, absent_N, refused_N, *others = np.array(rows).T
    large_N, large_fitted_N, masks_N, fits_N = others
    return (
        ratio_figures("words_found", found_N, present_N)
        | ratio_figures("words_fitted", fitted_N, present_N)
        | ratio_figures("words_refused", refused_N, absent_N)
        | ratio_figures("words_large_fitted", large_fitted_N, large_N)
        | ratio_figures("words_masks_per_name", masks_N, found_N)
        | ratio_figures("words_masks_fit", fits_N, masks_N)
        | {"words_present": int(present_N.sum()), "words_absent": int(absent_N.sum())}
        | {"words_large": int(large_N.sum()), "words_photographs": len(samples)}
    )


def measure(
    names: Sequence[str], model: SamClip, sample: Sample, features: ImageFeatures
) -> Counts:
    """Ask for the names of one photograph, and for some that are not there."""
    present = truths(sample)
    absent = absent_names(sample, names)
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


def absent_names(sample: Sample, names: Sequence[str]) -> list[str]:
    """Return ``ABSENT`` names that no thing in a photograph has, the same in every run."""
    there = {instance["category"] for instance in sample.info["instances"]}
    random = np.random.default_rng(list(sample.key.encode()))
    others = [name for name in names if name not in there]
    return [str(name) for name in random.choice(others, ABSENT, replace=False)]
