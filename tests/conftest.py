"""Fixtures that several test folders share, including services that run in this process."""

import gc
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

import samclip_core.encoder
from samclip_core.engine import graphs
from samclip_core.model import SamClip
from services.backbone.app import Backbone
from services.backbone.embedder import Embedder
from services.heads.classification.app import Classification
from services.heads.own.app import of
from services.heads.segmentation.app import Segmentation
from services.heads.semantic.app import Semantic
from services.request import calls
from services.retrieval import app as retrieval
from services.retrieval.app import Retrieval
from services.settings import Settings
from tests import changed, redis_server, traced
from tests.changed import pytest_addoption  # noqa: F401 - pytest reads it here
from tests.checkout import ROOT
from tests.in_process import SECRET, Caller, served
from tests.ports import free_port
from tests.tiny import make_tiny_checkpoint

# `make browser` installs Playwright; other suites do without.
collect_ignore = [] if importlib.util.find_spec("playwright") else ["browser"]

# A slow machine is not a failure.
hypothesis_settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any-machine")

TRAINING = "tests/e2e/test_training.py"
"""Takes minutes, nearly all of them without Ray: it runs beside the services."""
SERVICES = ("tests/e2e/",)
WITH_RAY = ("tests/faults/",)
BEFORE = pytest.StashKey[set[tuple[str, str]]]()
LONG = (*SERVICES, *WITH_RAY, "tests/parity/", "tests/integration/")
"""The longest files are here: they run first, so that no worker is left alone with one of them."""


class _ByFile(LoadScopeScheduling):
    """Give a worker all tests of the shared service, and another one those that start their own.

    Distribute the other tests by file, as collected.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file == TRAINING:
            return file
        groups = {"service": SERVICES, "ray": WITH_RAY}
        return next((name for name, files in groups.items() if file.startswith(files)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    # With pytest 9.2, pytest-xdist silently ignores its own groups.
    return _ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests of a change, and put the long files first, if workers share the tests."""
    changed.select(config, items)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[BEFORE] = _open_files()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test that leaves files open, which else fail the one that happens to collect them."""
    yield
    left = list[str]()
    if _open_files() - item.stash[BEFORE]:
        vars(item).get("funcargs", {}).clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", lambda caught: left.append(f"{caught.exc_value}"))
            gc.collect()
    assert not left, f"the test has left something open: {', '.join(left)}"


def _open_files() -> set[tuple[str, str]]:
    """Return the numbers and paths of this process's open files; none but on Linux."""
    found = set[tuple[str, str]]()
    for descriptor in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # that of the folder itself
            found.add((descriptor.name, os.readlink(descriptor)))
    return {(number, path) for number, path in found if path.startswith("/")}


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Keep exported graphs on disk, for the other tests and for later runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "trace", partial(traced.kept, graphs.trace))
        yield


@pytest.fixture
def small_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start Ray with two CPUs, for Ray Data jobs."""
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")  # nice workers never start on a busy machine
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def compiled_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make ``SamClip.load`` keep compiled graphs in a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            samclip_core.encoder, "CACHE_DIR", tmp_path_factory.mktemp("cache") / "compiled"
        )
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of the photograph sets; skip the test if they are absent."""
    root = Path(os.environ.get("SAMCLIP_DATA", ROOT / "../shared/data")).resolve()
    if not (root / "coco_multi").is_dir():
        pytest.skip(f"no photograph sets at {root}: set SAMCLIP_DATA to their folder")
    return root


@pytest.fixture(scope="session")
def radio_tiny() -> Path:
    """Return the folder of a small RADIO in its published layouts; skip the test without it."""
    folder = Path(os.environ.get("SAMCLIP_DATA", ROOT / "../shared/data")).resolve() / "radio-tiny"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set SAMCLIP_DATA to the folder that has radio-tiny")
    return folder


@pytest.fixture(scope="session")
def mobile_sam(data_root: Path) -> Path:
    """Return the folder of a MobileSAM with random weights and of its answers; skip if absent."""
    return _published(data_root, "mobile-sam-random")


@pytest.fixture(scope="session")
def tips_tiny(data_root: Path) -> Path:
    """Return the folder of a small TIPSv2 in its authors' files; skip the test without it."""
    return _published(data_root, "tips-tiny")


@pytest.fixture(scope="session")
def sam2_seeded(data_root: Path) -> Path:
    """Return the folder of a SAM 2.1 tiny's shapes and answers; skip the test without it."""
    return _published(data_root, "sam21-seeded")


@pytest.fixture(scope="session")
def efficientvit_sam_tiny(data_root: Path) -> Path:
    """Return the folder of narrow EfficientViT-SAMs and of their answers; skip if absent."""
    return _published(data_root, "efficientvit-sam-tiny")


def _published(data_root: Path, name: str) -> Path:
    folder = data_root / name
    if not folder.is_dir():
        pytest.skip(f"no checkpoint with random weights in a published layout at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an ``edge`` checkpoint with small random weights, and return its directory."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-edge")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_server.RedisServer]:
    """Run one Redis for all tests that do not disturb it; each test uses its own keys."""
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[redis_server.RedisServer]:
    """Run a Redis that the test may kill, freeze and restart."""
    with redis_server.running(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def patience() -> Iterator[None]:
    """Raise the timeout of the index, so that a slow machine is not taken for a failed disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "HEALTH_S", 100)
        yield


@pytest.fixture
def front_door_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(calls.SECRET_VARIABLE, SECRET)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path, front_door_secret: None) -> Settings:
    return Settings(
        checkpoint=str(tiny_checkpoint),
        index_dir=tmp_path / "index",
        max_batch_size=4,
        threads=1,
        compiled_cache_dir=tmp_path / "compiled",
        cache_bytes=64 * 2**20,
    )


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start backbones without their warm-up, which takes longer than most tests."""
    monkeypatch.setattr(Embedder, "warm_up", lambda _: None)


@pytest.fixture
async def caller(settings: Settings, tiny_model: SamClip, cold: None) -> AsyncIterator[Caller]:
    """Return a caller of a backbone and all heads, which serve a checkpoint of random weights."""
    settings = settings.model_copy(update={"inner_grpc_port": free_port()})
    heads = Classification, Segmentation, Semantic, of("parts", "tests.own_heads:Parts")
    opened = [head(settings, sam_head=tiny_model.sam_head) for head in heads]
    backbone, opened = Backbone(settings, tiny_model), [*opened, Retrieval(settings)]
    async with served(backbone, *opened, port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        caller.services = [backbone, *opened]
        yield caller
        await caller.close()
    for head in opened:
        await head.backbone.close()
        if isinstance(head, Retrieval):
            head.__del__()  # Serve calls it when a replica stops
    await backbone.embedder.close()
