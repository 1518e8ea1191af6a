"""Front doors that several tests share."""

from collections.abc import Iterator

import pytest

from services.front_door import keys, reload
from tests.door import FIRST, SECOND, Door, Serve, answering, opened


@pytest.fixture(scope="module")
def shared() -> Iterator[Door]:
    with opened(Serve()) as door:
        yield door


@pytest.fixture
def door(shared: Door) -> Door:
    vars(shared.serve).update(vars(answering()))
    return shared


@pytest.fixture(scope="module")
def shared_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    file = tmp_path_factory.mktemp("guarded") / "keys"
    keys.write(file, [FIRST, SECOND])
    with opened(Serve(), api_keys_file=file) as door:
        yield door


@pytest.fixture
def guarded(shared_with_keys: Door) -> Door:
    """Return a front door that requires FIRST or SECOND; a test may load other keys."""
    door, file = shared_with_keys, shared_with_keys.settings.api_keys_file
    assert file
    vars(door.serve).update(vars(answering()))
    keys.write(file, [FIRST, SECOND])
    reload.load_keys(door.admin, file)
    return door
