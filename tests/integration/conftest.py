"""Front doors that several tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.front_door import keys
from tests.door import FIRST, SECOND, Door, Serve, answering, opened


@pytest.fixture(scope="module")
def shared() -> Iterator[Door]:
    with opened(Serve()) as door:
        yield door


@pytest.fixture
def door(shared: Door) -> Door:
    vars(shared.serve).update(vars(answering()))
    return shared


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Door]:
    """Run a front door that requires the keys in its file."""
    keys.write(tmp_path / "keys", [FIRST, SECOND])
    with opened(answering(), api_keys_file=tmp_path / "keys") as door:
        yield door
