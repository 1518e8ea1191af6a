"""The indexes of photograph sets that these tests read."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes out of the user's cache: all URLs of the memory look alike from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("indexes")))
        yield
