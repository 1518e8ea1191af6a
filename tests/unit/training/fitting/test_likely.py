from dataclasses import replace

import numpy as np
import pytest

from training.fitting import likely
from training.fitting.presence import NameEvidence


def photographs(
    count: int = 400, names: int = 40, above: float = 0.0, seed: int = 0
) -> list[NameEvidence]:
    """Return photographs of a few names.

    Those score about 0.9. Others score ``above`` plus an exponential variable of mean 0.05, whose
    highest of N grows by 0.05 with the logarithm of N. All objects score 0.1 more.
    """
    random, made = np.random.default_rng(seed), []
    for _ in range(count):
        there_N = random.random(names) < 0.02
        score_N = np.where(there_N, 0.9, above + random.exponential(0.05, names))
        cosine_N2 = np.stack([score_N, score_N + 0.1], axis=1)
        made.append(
            NameEvidence(there_N, np.zeros((names, 2)), np.zeros((names, 0, 6)), None, cosine_N2)
        )
    return made


def test_the_score_grows_as_the_highest_of_many_cosines_does() -> None:
    photos = photographs()
    fitted = likely.fit(photos, photos)
    assert fitted is not None
    assert fitted.images_growth == pytest.approx(0.05, abs=0.008)
    assert fitted.objects_growth == pytest.approx(0.05, abs=0.008)
    assert fitted.images_most == fitted.objects_most == 200
    for size in (5, 20, 80, 200):  # the quantile of a Gumbel variable
        expected = 0.05 * (np.log(size) - np.log(-np.log(likely.REFUSED)))
        assert fitted.among(size, objects=False) == pytest.approx(expected, abs=0.03)
        assert fitted.among(size, objects=True) == pytest.approx(expected + 0.1, abs=0.03)


def test_as_many_names_are_refused_in_collections_of_any_size() -> None:
    photos = photographs()
    figures = likely.measured(likely.fit(photos, photos), photographs(seed=1))
    for kind in likely.KINDS:
        for size in likely.REPORTED:
            refused = figures[f"likely_{kind}_refused_of_{size}"]
            assert refused == pytest.approx(likely.REFUSED, abs=0.08)
            assert figures[f"likely_{kind}_found_of_{size}"] == 1


def test_the_level_is_that_of_photographs_that_the_model_never_saw() -> None:
    seen, unseen = photographs(), photographs(60, above=0.07, seed=1)
    own, other = likely.fit(seen, seen), likely.fit(seen, unseen)
    assert other.images_growth == pytest.approx(own.images_growth)
    assert other.images == pytest.approx(own.images + 0.07, abs=0.02)


def test_nothing_is_said_about_other_sizes_than_those_measured() -> None:
    fitted = likely.fit(photographs(), photographs())
    assert fitted.among(200, objects=False) > 0
    assert fitted.among(201, objects=False) == fitted.among(0, objects=False) == 0


def test_nothing_is_fitted_without_regions_or_without_absent_names() -> None:
    photos = photographs(60)
    whole = [replace(one, cosine_N2=one.cosine_N2 + np.array([0, -np.inf])) for one in photos]
    assert likely.fit(whole, whole) is None
    assert "likely_objects_found_of_5" not in likely.measured(likely.fit(photos, photos), whole)
    every = [replace(one, there_N=np.ones_like(one.there_N)) for one in photos]
    assert likely.fit(every, every) is None
    assert likely.fit(photos[:3], photos[:3]) is None
    assert likely.fit(photos, []) is None
