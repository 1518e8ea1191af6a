"""Concepts beside texts: does a concept win where it is right, and nowhere else?

A concept from three things of a name, in three photographs, takes the place of the name among all
names; the things of the other photographs are classified. M things, N names, D width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.areas import Area, embed_areas
from samclip_core.answers.concepts import space_of, to_texts
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import ConceptSpace
from samclip_core.model import SamClip
from training.data.annotations import decoded
from training.data.sample import Sample
from training.evaluation.measures import ratio_figures
from training.evaluation.outlines import outlined_things
from training.evaluation.suite import Metrics, progress

EXAMPLES, DRAWS = 3, 4
LEAST_AREA = 0.01
"""Smallest thing, as a share of its photograph: of smaller ones the dense map knows little."""
BIASES = np.arange(-0.6, 1.05, 0.1).round(1).tolist()


class Things(NamedTuple):
    """The vectors of outlined things, with the indices of their names and photographs."""

    vector_MD: NDArray[np.float32]
    name_M: NDArray[np.intp]
    photo_M: NDArray[np.intp]


class Draw(NamedTuple):
    """A name, the mean of its examples, and the things that are asked for."""

    name: int
    mean_D: NDArray[np.float32]
    asked_M: NDArray[np.bool_]


def things(model: SamClip, samples: Sequence[Sample], names: Sequence[str]) -> Things:
    """Encode photographs and return the vectors of their things."""
    vectors: list[NDArray[np.float32]] = []
    indices, photos = [], []
    for number, sample in enumerate(progress(samples, "concepts")):
        outlined = [thing for thing in outlined_things(sample) if thing["category"] in names]
        masks = decoded([thing["segmentation"] for thing in outlined])
        pairs = zip(outlined, masks, strict=True)
        large = [(thing, mask) for thing, mask in pairs if mask.mean() >= LEAST_AREA]
        if large:
            areas = (Area.of_mask(mask_HW) for _, mask_HW in large)
            vectors += embed_areas(model.encode(sample.encoded), areas)
            indices += [names.index(thing["category"]) for thing, _ in large]
            photos += [number] * len(large)
    vector_MD = np.array(vectors, np.float32).reshape(-1, model.config.text_dim)
    return Things(vector_MD, np.array(indices, np.intp), np.array(photos, np.intp))


def fit(model: SamClip, given: Things, names: Sequence[str]) -> ConceptSpace | None:
    """Return the space in which most things get their own name, whether a concept's or a text's.

    None if no name has things in enough photographs.
    """
    text_ND = model.embed_labels(names)
    drawn = [*draws(given, given)]
    if not drawn:
        return None
    mean_D = given.vector_MD.mean(axis=0)
    spaces = [space_of(mean_D, bias) for bias in BIASES]
    return max(spaces, key=lambda space: wins(drawn, given, text_ND, space)[:, 4].sum())


def measured(
    model: SamClip, given: Things, asked: Things, names: Sequence[str], space: ConceptSpace | None
) -> Metrics:
    """Return the shares of things that texts and concepts win, with intervals over draws.

    Examples are drawn from ``given``, and the things of ``asked`` are classified.
    """
    text_ND = model.embed_labels(names)
    drawn, figures = [*draws(given, asked)], Metrics()
    if not drawn:
        return figures
    for way, counts in (
        ("_by_text", wins(drawn, asked, text_ND, None, by_text=True)),
        ("", wins(drawn, asked, text_ND, space)),
    ):
        own, own_won, other, other_won, right = counts.T
        figures |= ratio_figures(f"concept_own{way}", own_won, own)
        figures |= ratio_figures(f"concept_others{way}", other_won, other)
        figures |= ratio_figures(f"concept_right{way}", right, own + other)
    return figures | {"concept_draws": len(drawn)}


def draws(given: Things, asked: Things) -> Iterator[Draw]:
    """Yield ``DRAWS`` concepts of each name that has things in enough photographs."""
    random = np.random.default_rng(0)
    for name in np.unique(given.name_M).tolist():
        of_name_M = given.name_M == name
        photos = np.unique(given.photo_M[of_name_M])
        for _ in range(DRAWS if len(photos) > EXAMPLES else 0):
            chosen = random.choice(photos, EXAMPLES, replace=False)
            rows = [
                random.choice(np.flatnonzero(of_name_M & (given.photo_M == photo)))
                for photo in chosen
            ]
            asked_M = np.full(len(asked.name_M), True)
            if asked is given:
                asked_M = ~np.isin(asked.photo_M, chosen)
            if (asked.name_M[asked_M] == name).any():
                yield Draw(name, unit(given.vector_MD[rows].mean(axis=0)), asked_M)


def wins(
    drawn: Sequence[Draw],
    asked: Things,
    text_ND: NDArray[np.float32],
    space: ConceptSpace | None,
    by_text: bool = False,
) -> NDArray[np.int64]:
    """Return five counts per draw.

    They are: things of its name, how many of these it wins, things of other names, how many of
    these it wins, and things that get their own name. ``by_text``: the text of the name competes in
    place of the concept.
    """
    cosine_MN = asked.vector_MD @ text_ND.T
    counts = []
    for name, mean_D, asked_M in drawn:
        vector_D = mean_D if space is None else to_texts(mean_D, space)
        own_M = asked.name_M[asked_M] == name
        others_MN = np.delete(cosine_MN[asked_M], name, axis=1)
        index_M = np.delete(np.arange(len(text_ND)), name)[others_MN.argmax(axis=1)]
        mine_M = cosine_MN[asked_M, name] if by_text else asked.vector_MD[asked_M] @ vector_D
        won_M = mine_M > others_MN.max(axis=1)
        right_M = np.where(won_M, own_M, index_M == asked.name_M[asked_M])
        counts.append(
            [mask_M.sum() for mask_M in (own_M, own_M & won_M, ~own_M, ~own_M & won_M, right_M)]
        )
    return np.array(counts, np.int64)
