"""A short run of every target; ``make fuzz`` runs longer."""

import pytest
from hypothesis import given, settings

from tests.fuzz.strategies import inputs
from tests.fuzz.targets import TARGETS, seeds

EXAMPLES = 100


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    target = TARGETS[name]
    for valid in seeds(name):
        target(valid)

    @settings(max_examples=EXAMPLES, database=None)
    @given(inputs(name))
    def check(data: bytes) -> None:
        target(data)

    check()
