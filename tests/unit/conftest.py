"""Fixtures of the services that run in this process."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from samclip_core.model import SamClip
from services import front_door
from services.backbone.app import Backbone
from services.classification.app import Classification
from services.retrieval import app as retrieval
from services.retrieval import vector_sets
from services.retrieval.app import Retrieval
from services.segmentation.app import Segmentation
from services.semantic.app import Semantic
from services.settings import Settings
from tests.in_process import SECRET, Caller, served
from tests.ports import free_port
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """Slowness of the machine that runs the tests is not a failure of Redis."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_sets, "ANSWER_S", 100)
        patch.setattr(retrieval, "HEALTH_S", 100)
        yield


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
        threads=1,
        compiled_cache_dir=tmp_path / "compiled",
        cache_bytes=64 * 2**20,
    )


@pytest.fixture
async def caller(settings: Settings, tiny_model: SamClip) -> AsyncIterator[Caller]:
    """Calls a backbone and all heads, on a checkpoint with random weights."""
    settings = settings.model_copy(update={"inner_grpc_port": free_port()})
    heads = Classification, Segmentation, Semantic, Retrieval
    backbone, opened = Backbone(settings, tiny_model), [head(settings) for head in heads]
    async with served(backbone, *opened, port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        yield caller
        await caller.close()
    for head in opened:
        await head.backbone.close()
    opened[-1].__del__()  # as Serve does
    await backbone.engine.close()
