"""Concepts beside texts, with vectors of which it is known who wins them."""

import numpy as np
import pytest

from samclip_core.answers.concepts import space_of
from samclip_core.answers.zero_shot import unit
from training.evaluation.outlines import NamedThings
from training.fitting import concepts
from training.fitting.concepts import LEAST_NAMES, Things

D = 32
TEXT_ND = np.eye(LEAST_NAMES, D, dtype=np.float32)
COMMON_D = np.eye(D, dtype=np.float32)[-1]
"""What all vectors of things have in common, and texts have not."""


def things(photos: int, noise: float = 0.05, names: int = LEAST_NAMES) -> Things:
    """Return a thing of each name in each photograph, near its text but for what all share."""
    name_M = np.tile(np.arange(names), photos)
    random = np.random.default_rng(0).normal(size=(names * photos, D)) * noise
    vector_MD = unit(TEXT_ND[name_M] + 3 * COMMON_D + random)
    return Things(vector_MD, name_M, np.repeat(np.arange(photos), names))


def test_the_fitted_space_keeps_concepts_from_winning_everything() -> None:
    given, asked = things(8), things(5, noise=0.06)
    space = concepts.fit(given, TEXT_ND)
    assert space is not None
    raw, fitted = (concepts.measured(given, asked, TEXT_ND, each) for each in (None, space))
    assert raw["concept_names"] == LEAST_NAMES
    assert (raw["concept_own"], raw["concept_others"]) == (1, 1)
    assert (fitted["concept_own"], fitted["concept_others"]) == (1, 0)
    assert raw["concept_right"] == pytest.approx(1 / LEAST_NAMES)
    assert fitted["concept_right"] == fitted["concept_right_by_text"] == 1


def test_examples_are_not_asked_for() -> None:
    given = things(5)
    for draw in concepts.draws(given, given):
        photos = np.unique(given.photo_M[~draw.asked_M])
        assert len(photos) == concepts.EXAMPLES
        rows_M = ~draw.asked_M & (given.name_M == draw.name)
        mean_D = unit(given.vector_MD[rows_M].mean(axis=0))
        np.testing.assert_allclose(draw.mean_D, mean_D, atol=1e-6)


def test_few_names_say_nothing_about_the_others() -> None:
    assert concepts.fit(things(8, names=LEAST_NAMES - 1), TEXT_ND) is None
    few = things(concepts.EXAMPLES)  # and each needs a photograph more than its examples
    assert concepts.fit(few, TEXT_ND) is None
    assert concepts.measured(few, few, TEXT_ND, space_of(COMMON_D, 0.0)) == {}


def test_more_draws_of_the_same_things_do_not_narrow_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In half of the photographs that are asked, no vector is near its text."""
    given, asked = things(8), things(6)
    asked.vector_MD[asked.photo_M % 2 == 0] = unit(COMMON_D - 0.1 * TEXT_ND.sum(axis=0))
    widths = []
    for count in (1, 8):
        monkeypatch.setattr(concepts, "DRAWS", count)
        figures = concepts.measured(given, asked, TEXT_ND, space_of(COMMON_D, 0.0))
        widths.append(figures["concept_right_high"] - figures["concept_right_low"])
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert widths[1] > 0.5


def test_only_large_things_with_a_name_of_the_set_count() -> None:
    vector_MD = np.eye(3, D, dtype=np.float32)
    photo = NamedThings(
        COMMON_D,
        np.zeros(LEAST_NAMES, np.bool_),
        vector_MD,
        np.array([0.5, 0.5, 0.001]),
        np.array([-1, 4, 4]),
        np.array([0, 0, 0]),
        np.zeros(3, np.float32),
    )
    made = Things.of([photo, photo])
    assert (made.name_M.tolist(), made.photo_M.tolist()) == ([4, 4], [0, 1])
    np.testing.assert_array_equal(made.vector_MD, vector_MD[[1, 1]])
    assert not len(Things.of([]).name_M)
