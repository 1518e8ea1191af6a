"""The photograph sets that these tests read, and their indexes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import photographs


@pytest.fixture(scope="package", autouse=True)
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes out of the user's cache: all URLs of the memory look alike from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("indexes")))
        yield


@pytest.fixture(scope="package")
def training_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    photographs.write_training_sets(root)
    return root
