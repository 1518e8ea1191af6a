"""The peers of the benchmark do the same work, or are left out."""

import numpy as np
import pytest

from tests.bench.peers.server import Absent, check

VECTOR_D = np.array([0.6, 0.8])


@pytest.mark.parametrize("answer", [{"embedding": [0.6, 0.8]}, [[0.6, 0.8]]])
def test_the_same_vector_in_any_dress(answer: object) -> None:
    check("x", answer, VECTOR_D)


@pytest.mark.parametrize("answer", [{"embedding": [0.8, 0.6]}, [0.6], {"embedding": []}])
def test_another_vector_is_another_work(answer: object) -> None:
    with pytest.raises(Absent, match="x does something else"):
        check("x", answer, VECTOR_D)
