"""Fixtures that several test folders share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

import samclip_core.model
from tests import redis_server

# Slowness of the machine that runs the tests is not a failure.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

ROOT = Path(__file__).resolve().parents[1]
WITH_RAY = (
    "tests/e2e/",
    "tests/faults/",
    "tests/unit/test_cache_warm.py",
    "tests/unit/test_training_embeddings.py",
)


class _ByFile(LoadScopeScheduling):
    """One worker runs all that start Ray, the others the rest file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(WITH_RAY) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    # pytest-xdist's own groups are silently lost with pytest 9.2.
    return _ByFile(config, log)


@pytest.fixture
def small_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of two workers, for jobs of Ray Data."""
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine, workers would never start
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def compiled_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``SamClip.load`` keeps compiled graphs in a folder of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            samclip_core.model, "CACHE_DIR", tmp_path_factory.mktemp("cache") / "compiled"
        )
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The photograph sets, read in place; tests that need them skip where they are absent."""
    root = Path(os.environ.get("SAMCLIP_DATA", ROOT / "../shared/data")).resolve()
    if not (root / "coco_multi").is_dir():
        pytest.skip(f"no photograph sets at {root}: set SAMCLIP_DATA to their folder")
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``edge`` checkpoint with small random weights."""
    from tests.tiny import make_tiny_checkpoint

    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-edge")


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_server.RedisServer]:
    """One Redis for all tests that do not disturb it; each uses keys of its own."""
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[redis_server.RedisServer]:
    """A Redis that the test may kill, freeze and start again."""
    with redis_server.running(tmp_path) as server:
        yield server
