"""Scores of texts are probabilities that refuse what is not in a photograph."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from samclip_core.answers.evidence import probability
from samclip_core.calibration import Presence
from training.fitting import presence
from training.fitting.presence import NameEvidence, logistic

WEIGHTS = np.array([1.0, 0.5, -0.5, 0.3, 0.8, -0.4])
"""Weights of a region's numbers that tell which fits."""


def photographs(count: int = 60, names: int = 10, regions: int = 20) -> list[NameEvidence]:
    """Return photographs of which two names are there, each with some regions that fit it."""
    random, made = np.random.default_rng(0), []
    for _ in range(count):
        there_N = np.arange(names) < 2
        numbers_NRF = random.normal(size=(names, regions, 6)) * 2 - ~there_N[:, None, None]
        fits_NR = random.random((names, regions)) < probability(numbers_NRF @ WEIGHTS - 1)
        values_N2 = random.normal(size=(names, 2)) + there_N[:, None]
        fits_NR &= there_N[:, None]
        made.append(NameEvidence(there_N, values_N2, numbers_NRF, fits_NR, np.zeros((names, 2))))
    return made


def test_the_fit_recovers_known_weights() -> None:
    random = np.random.default_rng(0)
    values_M2 = random.normal(size=(20_000, 2)) * [4, 2]
    true_M = random.random(20_000) < probability(values_M2 @ [0.5, 0.2])
    assert logistic(values_M2, true_M) == pytest.approx((0.5, 0.2, 0), abs=0.04)


def test_names_that_are_there_count_as_much_as_those_that_are_not() -> None:
    random = np.random.default_rng(0)
    true_M = np.arange(4000) < 200
    values_M2 = random.normal(size=(4000, 2)) + np.where(true_M, 2.0, 0)[:, None] * [1, 0]
    *weights_2, offset = logistic(values_M2, true_M)
    assert weights_2 == pytest.approx([2, 0], abs=0.4)
    score_M = probability(values_M2 @ weights_2 + offset)
    assert score_M[true_M].mean() == pytest.approx(1 - score_M[~true_M].mean(), abs=0.05)


def test_regions_are_ranked_by_what_tells_those_that_fit() -> None:
    found = presence.region_weights(photographs(400))
    assert found == pytest.approx(WEIGHTS, abs=0.1)


def test_all_numbers_are_fitted_and_refuse_absent_names() -> None:
    photos = photographs()
    fitted = presence.fit(photos, photos)
    scaled = np.array(astuple(fitted.regions))
    found = presence.region_weights(photos)
    np.testing.assert_allclose(scaled, scaled[0] / found[0] * found, atol=2e-3)
    assert fitted.map_weight > 0.5
    assert fitted.pooled_weight > 0.5
    assert refused(fitted, photos) == pytest.approx(presence.REFUSED, abs=0.01)


def refused(fitted: Presence, photos: list[NameEvidence]) -> float:
    """Return the share of the absent names that score too little."""
    absent = [photo.log_odds(fitted)[~photo.there_N] for photo in photos]
    return float(np.mean(probability(np.concatenate(absent)) < fitted.min_score))


def test_the_least_score_follows_from_photographs_that_the_model_never_saw() -> None:
    """A network that learnt from photographs has less evidence for what they lack."""
    unseen = photographs()
    seen = [
        replace(one, values_N2=one.values_N2 - 3 * ~one.there_N[:, None]) for one in photographs()
    ]
    assert refused(presence.fit([*seen, *unseen], unseen), unseen) == pytest.approx(
        presence.REFUSED, abs=0.01
    )
    assert refused(presence.fit(seen, seen), unseen) < 0.5
    with pytest.raises(ValueError, match="give photographs that hold some names"):
        presence.fit(seen, [replace(one, there_N=np.ones(10, np.bool_)) for one in unseen])


def scores(photos: int, names: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and presence of names in photographs; a tenth of them is there."""
    random = np.random.default_rng(seed)
    there_PN = random.random((photos, names)) < 0.1
    return probability(random.normal(size=(photos, names)) + 2 * there_PN), there_PN


def share_right(score_PN: np.ndarray, there_PN: np.ndarray, least: float) -> float:
    """Return the share that is there, both kinds of names having the same total weight."""
    sure_PN = score_PN >= least
    right, wrong = sure_PN[there_PN].mean(), sure_PN[~there_PN].mean()
    return float(right / (right + wrong))


def test_nine_of_ten_names_that_score_enough_to_be_sure_are_there() -> None:
    score_PN, there_PN = scores(100, 50)
    least = presence.sure(score_PN, there_PN)
    assert least is not None
    assert presence.RIGHT <= share_right(score_PN, there_PN, least) <= presence.RIGHT + 0.05
    assert presence.sure(np.full((40, 3), 0.9), np.tile([True, False, False], (40, 1))) is None


def test_being_sure_holds_in_photographs_that_it_was_not_fitted_to() -> None:
    """At the first score with the share itself, half of the fits are too sure, by luck."""
    fits = [presence.sure(*scores(40, 50, seed)) for seed in range(20)]
    shares = [share_right(*scores(4000, 50, seed=99), least) for least in fits if least]
    assert len(shares) > 10
    assert np.mean(np.array(shares) >= presence.RIGHT) >= 0.9


def test_few_names_are_no_reason_to_be_sure() -> None:
    score_PN = np.tile([0.99, 0.5, 0.4], (presence.SURE_NAMES - 1, 1))
    there_PN = np.tile([True, False, False], (presence.SURE_NAMES - 1, 1))
    assert presence.sure(score_PN, there_PN) is None
    again = [np.concatenate([each, each[:1]]) for each in (score_PN, there_PN)]
    assert presence.sure(*again) == pytest.approx(0.501)


def test_without_outlines_or_use_regions_have_no_weights() -> None:
    photos = photographs()
    bare = [replace(one, fits_NR=None) for one in photos]
    assert presence.fit(bare, bare).regions is None
    misled = [
        replace(one, numbers_NRF=one.numbers_NRF + 9 * ~one.there_N[:, None, None])
        for one in photos
    ]
    assert presence.fit(misled, misled) == presence.fit(bare, bare)


def test_figures_are_shares_with_their_counts() -> None:
    weights = Presence(map_weight=1, pooled_weight=0, offset=0, min_score=0.5, sure=0.6)
    rest = np.zeros((3, 0, 6)), None, np.zeros((3, 2))
    photos = [
        NameEvidence(np.array([True, True, False]), np.array([[1, 0], [-1, 0], [1, 0]]), *rest),
        NameEvidence(np.array([True, False, False]), np.array([[1, 0], [-1, 0], [-1, 0]]), *rest),
    ]
    figures = presence.measured(weights, photos)
    assert figures["names_found"] == pytest.approx(2 / 3)
    assert figures["names_refused"] == pytest.approx(2 / 3)
    assert figures["names_sure_right"] == pytest.approx(2 / 3)
    assert (figures["names_present"], figures["names_absent"]) == (3, 3)
    assert figures["names_found_low"] <= 2 / 3 <= figures["names_found_high"]


def test_photographs_that_hold_every_name_have_no_figure_of_absent_ones() -> None:
    weights = Presence(map_weight=1, pooled_weight=0, offset=0, min_score=0.5, sure=0.6)
    photo = NameEvidence(
        np.ones(1, bool), np.ones((1, 2)), np.zeros((1, 0, 6)), None, np.zeros((1, 2))
    )
    figures = presence.measured(weights, [photo, photo])
    assert figures["names_sure_right"] == pytest.approx(1)
    assert "names_refused" not in figures
