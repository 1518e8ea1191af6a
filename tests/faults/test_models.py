"""A converted model under Ray Serve, with Redis: CVAT's functions, collections, and faults."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samclip

from samclip_core import SamClip
from services.retrieval import backup, restore
from tests.close import assert_close
from tests.converted import make_converted
from tests.e2e.conftest import Service
from tests.e2e.test_cvat import call, load
from tests.faults import processes
from tests.faults.conftest import DURABLE, Loaded, serve
from tests.faults.load import LABELS, Pictures
from tests.faults.report import Report
from tests.faults.test_processes import AFFECTED, FAULTS, only_in_flight
from tests.faults.test_redis import INDEX, states, until
from tests.in_process import png
from tests.redis_server import RedisServer, running

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PHOTO = png(width=64, height=48)


@pytest.fixture(scope="module", params=["radio", pytest.param("mobile", marks=FAULTS)])
def weights(
    request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("converted")
    return make_converted(request.param, data_root, root / request.param)


@pytest.fixture(scope="module")
def model(weights: Path) -> SamClip:
    return SamClip.load(weights, dtype="float32")


@pytest.fixture(scope="module")
def pictures(model: SamClip) -> Pictures:
    return Pictures(model)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store"), *DURABLE) as server:
        yield server


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, store: RedisServer
) -> Iterator[Service]:
    started = serve(tmp_path_factory.mktemp("service"), weights, store.port)
    yield started
    started.stop()


@pytest.fixture
def report(weights: Path) -> Report:
    """Return a report of its own, because the table is of one checkpoint."""
    return Report(weights.name, None)


def test_cvats_functions(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMCLIP_URL", service.url)
    monkeypatch.setenv("SAMCLIP_LABELS", ", ".join(LABELS))
    found = call(load().interact, PHOTO, pos_points=[[30, 20]], neg_points=[], obj_bbox=None)
    with samclip.Client(service.address, timeout=300) as client:
        (mask,) = client.image(PHOTO).segment(points=[(30, 20)])
        masks = client.image(PHOTO).segment(text=LABELS)
    np.testing.assert_array_equal(np.array(found["mask"], bool), mask.array)
    detected = call(load().detect, PHOTO)
    assert [one["label"] for one in detected] == [mask.label for mask in masks]


def test_a_collection_is_restored_from_its_backup(
    service: Service, store: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAMCLIP_REDIS_URL", store.url)
    photos = {str(red): png(red) for red in (0, 100, 255)}
    with samclip.Client(service.address, timeout=300) as client:
        client.index("kept", photos)
        before = client.search("kept", text="a cat")
        assert len(before) == len(photos)
        assert backup.main([str(tmp_path / "file")]) == 0
        client.delete("kept", all=True)
        assert restore.main([str(tmp_path / "file")]) == 0
        assert_close(client.search("kept", text="a cat"), before)
        (nearest,) = client.search("kept", image=photos["255"], top_k=1)
        assert nearest.id == "255"


async def test_redis_is_killed(loaded: Loaded, service: Service, store: RedisServer) -> None:
    async with loaded("Redis") as load:
        store.kill()
        await until(lambda: states(service) == {"down"})
        store.start()
        load.mark()
    assert load.failures(ever=True).keys() <= INDEX


async def test_the_backbone_is_killed(loaded: Loaded, service: Service) -> None:
    async with loaded("backbone") as load:
        processes.kill(service, processes.replica("backbone"))
    only_in_flight(load, AFFECTED["backbone"])
