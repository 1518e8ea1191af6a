"""Fixtures of the services that run in this process."""

from pathlib import Path

import pytest

from samclip_core.model import SamClip
from services import front_door
from services.settings import Settings
from tests.in_process import SECRET
from tests.tiny import make_tiny_checkpoint


@pytest.fixture
def front_door_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front_door.SECRET_VARIABLE, SECRET)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_directory: Path) -> SamClip:
    return SamClip.load(tiny_directory)


@pytest.fixture
def settings(tiny_directory: Path, tmp_path: Path, front_door_secret: None) -> Settings:
    return Settings(
        checkpoint=str(tiny_directory),
        index_dir=tmp_path / "index",
        max_batch_size=4,
        torch_threads=1,
        cache_bytes=64 * 2**20,
    )
