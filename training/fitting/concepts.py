"""Concepts beside texts: does a concept win where it is right, and nowhere else?

A concept from three things of a name, in three photographs, takes the place of the name among all
names; the things of the other photographs are classified. M things, N names, D width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.concepts import space_of, to_texts
from samclip_core.answers.zero_shot import unit
from samclip_core.calibration import ConceptSpace
from training.evaluation.measures import ratio_figures
from training.evaluation.outlines import NamedThings
from training.evaluation.suite import Metrics

EXAMPLES, DRAWS = 3, 4
LEAST_NAMES = 10
"""Fewest names with things in enough photographs: fewer say nothing about other names."""
LEAST_AREA = 0.01
"""Smallest thing, as a share of its photograph: of smaller ones the dense map knows little."""
BIASES = np.arange(-0.6, 1.05, 0.1).round(1).tolist()


class Things(NamedTuple):
    """The vectors of outlined things, with the indices of their names and photographs."""

    vector_MD: NDArray[np.float32]
    name_M: NDArray[np.intp]
    photo_M: NDArray[np.intp]

    @classmethod
    def of(cls, photos: Sequence[NamedThings]) -> Self:
        """Take the things that have a name and are large enough."""
        if not photos:
            return cls(np.zeros((0, 0), np.float32), np.zeros(0, np.intp), np.zeros(0, np.intp))
        large = [(photo.name_M >= 0) & (photo.area_M >= LEAST_AREA) for photo in photos]
        pairs = [*zip(photos, large, strict=True)]
        return cls(
            np.concatenate([photo.thing_MD[large_M] for photo, large_M in pairs]),
            np.concatenate([photo.name_M[large_M] for photo, large_M in pairs]),
            np.repeat(np.arange(len(photos)), [large_M.sum() for large_M in large]),
        )


class Draw(NamedTuple):
    """A name, the mean of its examples, and the things that are asked for."""

    name: int
    mean_D: NDArray[np.float32]
    asked_M: NDArray[np.bool_]


def fit(given: Things, text_ND: NDArray[np.float32]) -> ConceptSpace | None:
    """Return the space in which most things get their own name, whether a concept's or a text's.

    None unless ``LEAST_NAMES`` names have things in enough photographs.
    """
    drawn = [*draws(given, given)]
    if len({draw.name for draw in drawn}) < LEAST_NAMES:
        return None
    mean_D = given.vector_MD.mean(axis=0)
    spaces = [space_of(mean_D, bias) for bias in BIASES]
    return max(spaces, key=lambda space: wins(drawn, given, text_ND, space)[:, 4].sum())


def measured(
    given: Things, asked: Things, text_ND: NDArray[np.float32], space: ConceptSpace | None
) -> Metrics:
    """Return the shares of things that texts and concepts win, with intervals over photographs.

    Examples are drawn from ``given``, and the things of ``asked`` are classified.
    """
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
    return figures | {"concept_names": len({draw.name for draw in drawn})}


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
    """Return five counts per photograph, over all draws.

    They are: things of a draw's name, how many of these it wins, things of other names, how many of
    these it wins, and things that get their own name. ``by_text``: the text of the name competes in
    place of the concept.
    """
    cosine_MN = asked.vector_MD @ text_ND.T
    counts_M5 = np.zeros((len(asked.name_M), 5), np.int64)
    for name, mean_D, asked_M in drawn:
        vector_D = mean_D if space is None else to_texts(mean_D, space)
        own_M = asked.name_M[asked_M] == name
        others_MN = np.delete(cosine_MN[asked_M], name, axis=1)
        index_M = np.delete(np.arange(len(text_ND)), name)[others_MN.argmax(axis=1)]
        mine_M = cosine_MN[asked_M, name] if by_text else asked.vector_MD[asked_M] @ vector_D
        won_M = mine_M > others_MN.max(axis=1)
        right_M = np.where(won_M, own_M, index_M == asked.name_M[asked_M])
        masks = (own_M, own_M & won_M, ~own_M, ~own_M & won_M, right_M)
        counts_M5[asked_M] += np.stack(masks, axis=1)
    counts_P5 = np.zeros((asked.photo_M.max(initial=0) + 1, 5), np.int64)
    np.add.at(counts_P5, asked.photo_M, counts_M5)
    return counts_P5
