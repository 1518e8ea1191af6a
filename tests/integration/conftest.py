"""A front door that several tests share."""

from collections.abc import Iterator

import pytest

from tests.door import (
    Door,
    Serve,
    opened,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Door]:
    with opened(Serve()) as door:
        yield door


@pytest.fixture
def door(shared: Door) -> Door:
    fresh = Serve()
    fresh.gate.set()
    vars(shared.serve).update(vars(fresh))
    return shared
