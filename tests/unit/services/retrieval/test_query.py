"""Pages of a ranking, over an engine whose graph search misses items."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samclip_core.answers.steps import Steps
from services.retrieval import query
from services.retrieval.query import Query, finished

WALK, EXACT = 16, 64
SIZES = (1, WALK - 1, WALK, WALK + 1, EXACT - 1, EXACT, EXACT + 1, 8 * WALK, 25 * WALK + 3)


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "EXACT", EXACT)
        patch.setattr(query, "WALK", WALK)
        yield


@given(
    size=st.sampled_from(SIZES),
    top_k=st.sampled_from([7, WALK - 1, WALK, WALK + 1, 2 * WALK, EXACT, 1000]),
    excluded=st.none() | st.integers(0, max(SIZES)),
    filter=st.none() | st.just({"kind": "1"}),
)
def test_pages_neither_repeat_nor_skip_an_item(size, top_k, excluded, filter):
    chance = random.Random(size)

    def nearest(most: int, exact: bool) -> Steps[list[tuple[int, float]]]:
        yield None
        keys = [key for key in range(size) if exact or key % 3]
        if exact:
            chance.shuffle(keys)  # each score stands twice, and engines return either item
        return sorted(((key, 1 / (1 + key // 2)) for key in keys), key=lambda hit: -hit[1])[:most]

    found: list[int] = []
    for offset in range(0, size + top_k, top_k):
        asked = Query(np.zeros(1, np.float32), top_k, offset, filter)
        page = finished(asked.page(size, excluded, nearest))
        scores = [score for _, score in page]
        assert scores == sorted(scores, reverse=True)
        found += [key for key, _ in page]
    assert sorted(found) == [key for key in range(size) if key != excluded]
