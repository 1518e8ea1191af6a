"""Concepts beside texts, with vectors of which it is known who wins them."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from samclip_core.answers.concepts import space_of
from samclip_core.answers.zero_shot import unit
from samclip_core.model import SamClip
from training.evaluation import concepts
from training.evaluation.concepts import Things

D, NAMES = 32, ["a", "b", "c"]
TEXT_ND = np.eye(3, D, dtype=np.float32)
COMMON_D = np.eye(D, dtype=np.float32)[-1]
"""What all vectors of things have in common, and texts have not."""


@pytest.fixture
def model() -> SamClip:
    return cast(SamClip, SimpleNamespace(embed_labels=lambda names: TEXT_ND))


def things(photos: int, noise: float = 0.05) -> Things:
    """Return a thing of each name in each photograph, near its text but for what all share."""
    name_M = np.tile(np.arange(3), photos)
    random = np.random.default_rng(0).normal(size=(3 * photos, D)) * noise
    vector_MD = unit(TEXT_ND[name_M] + 3 * COMMON_D + random)
    return Things(vector_MD, name_M, np.repeat(np.arange(photos), 3))


def test_the_fitted_space_keeps_concepts_from_winning_everything(model: SamClip) -> None:
    given, asked = things(8), things(5, noise=0.06)
    space = concepts.fit(model, given, NAMES)
    assert space is not None
    raw, fitted = (concepts.measured(model, given, asked, NAMES, each) for each in (None, space))
    assert raw["concept_draws"] == 3 * concepts.DRAWS
    assert (raw["concept_own"], raw["concept_others"]) == (1, 1)
    assert (fitted["concept_own"], fitted["concept_others"]) == (1, 0)
    assert raw["concept_right"] == pytest.approx(1 / 3)
    assert fitted["concept_right"] == fitted["concept_right_by_text"] == 1


def test_examples_are_not_asked_for() -> None:
    given = things(5)
    for draw in concepts.draws(given, given):
        photos = np.unique(given.photo_M[~draw.asked_M])
        assert len(photos) == concepts.EXAMPLES
        rows_M = ~draw.asked_M & (given.name_M == draw.name)
        mean_D = unit(given.vector_MD[rows_M].mean(axis=0))
        np.testing.assert_allclose(draw.mean_D, mean_D, atol=1e-6)


def test_with_too_few_photographs_nothing_is_fitted(model: SamClip) -> None:
    few = things(concepts.EXAMPLES)
    assert concepts.fit(model, few, NAMES) is None
    assert concepts.measured(model, few, few, NAMES, space_of(COMMON_D, 0.0)) == {}
