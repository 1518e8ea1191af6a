"""A converted model under Ray Serve, with Redis: the playground, CVAT, collections, and faults."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import samclip
from samclip.mask_codecs import decode_rle

from samclip_core import Prompt, SamClip
from services.retrieval import backup, restore
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

pytestmark = pytest.mark.e2e
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


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=300) as opened:
        yield opened


def post(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    """Send a form as the playground does: a photograph as a file, nested values as JSON."""
    parts: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if isinstance(value, bytes):
            parts.append((name, ("photo.png", value)))
            continue
        for each in value if value in (LABELS, LABELS[1:]) else [value]:
            parts.append((name, (None, each if isinstance(each, str) else json.dumps(each))))
    reply = http.post(path, files=parts)
    assert reply.status_code == 200, reply.text
    return reply


def mask_of(rle: Mapping[str, Any]) -> np.ndarray:
    return decode_rle(rle["counts"].encode(), rle["height"], rle["width"])


def test_the_requests_of_the_playground(http: httpx.Client, model: SamClip) -> None:
    assert http.get("/playground/service.json").status_code == 200
    clicks = [{"points": [{"x": 30, "y": 20}]}]
    answer = post(http, "/segment", image=PHOTO, prompts=clicks, multimask=True).json()
    key, masks = answer["image"]["key"], answer["results"][0]["masks"]
    (expected,) = model.segment(PHOTO, [Prompt(points=((30, 20),))])
    for mask, mask_HW in zip(masks, expected.masks_MHW, strict=True):
        assert np.mean(mask_of(mask["rle"]) == mask_HW) > 0.97
    areas, asked = [{"rle": masks[0]["rle"]}], {"image": key, "labels": LABELS}
    for fields in ({}, {"areas": areas}):
        result = post(http, "/classify", **asked, **fields).json()["results"][0]
        assert {score["label"] for score in result["scores"]} == {*LABELS}
    assert post(http, "/segment", image=key, prompts=[{"text": x} for x in LABELS]).json()[
        "results"
    ]
    assert post(http, "/semantic", **asked, refine=True).json()["regions"]
    heat = post(http, "/explain", image=key, label=LABELS[0], others=LABELS[1:]).json()
    assert heat["low"] <= heat["high"]
    lines = post(http, "/everything", **asked).text.splitlines()
    assert lines
    items = [{"id": "photo", "image": {"key": key}, "metadata": {"name": "photo"}}]
    assert post(http, "/index", collection="playground", items=items).json()["indexed"] == 1
    for fields in ({"text": "a cat"}, {"image": key, "area": areas[0]}, {"id": "photo"}):
        hits = post(http, "/search", collection="playground", top_k=12, **fields).json()["hits"]
        assert [hit["id"] for hit in hits] == ["photo"]


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
        assert client.search("kept", text="a cat") == before
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
