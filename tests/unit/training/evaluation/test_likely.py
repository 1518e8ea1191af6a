from dataclasses import replace

import numpy as np
import pytest

from training.evaluation import likely
from training.evaluation.presence import Photo


def photographs(count: int = 60, names: int = 40) -> list[Photo]:
    """Return photographs of a few names; those score 0.6 or more, all others 0.4 or less."""
    random, made = np.random.default_rng(0), []
    for _ in range(count):
        there_N = random.random(names) < 0.01
        there_N[names // 2 :] = False
        score_N = np.where(there_N, 0.6, 0.2) + 0.2 * random.random(names)
        cosine_N2 = np.stack([score_N, score_N + 0.1], axis=1)
        made.append(Photo(there_N, np.zeros((names, 2)), np.zeros((names, 0, 6)), None, cosine_N2))
    return made


def test_the_scores_lie_between_names_that_are_there_and_others() -> None:
    fitted = likely.fit(photographs())
    assert fitted is not None
    assert fitted.images == pytest.approx(0.5, abs=0.105)
    assert fitted.objects == pytest.approx(0.6, abs=0.105)
    assert likely.measured(fitted, photographs()) == {
        "likely_images_found": 1,
        "likely_images_refused": 1,
        "likely_objects_found": 1,
        "likely_objects_refused": 1,
    }


def test_nothing_is_fitted_without_regions_or_without_absent_names() -> None:
    photos = photographs()
    whole = [replace(one, cosine_N2=one.cosine_N2 + np.array([0, -np.inf])) for one in photos]
    assert likely.fit(whole) is None
    assert "likely_objects_found" not in likely.measured(likely.fit(photos), whole)
    assert likely.fit([replace(one, there_N=np.ones_like(one.there_N)) for one in photos]) is None
    assert likely.fit(photos[:1]) is None
