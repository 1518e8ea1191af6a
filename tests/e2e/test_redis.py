"""The real service beside a Redis that is killed while it is asked, and comes back."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path

import grpc
import httpx
import pytest
import redis
from PIL import Image
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests import redis_server
from tests.e2e.conftest import Service, start
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
POINT = pb.Prompt(points=[pb.Point(x=20, y=20)])
CALLERS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, store: RedisServer
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    running = start(directory, str(tiny_checkpoint), REDIS_URL=store.url, REDIS_TIMEOUT_MS=1000)
    yield running
    running.stop(signal.SIGTERM)


@pytest.fixture(scope="module")
def segment(shared: Service) -> Iterator[Callable[[pb.Image], pb.SegmentResponse]]:
    with grpc.insecure_channel(shared.address) as channel:
        stub = rpc.SegmentationServiceStub(channel)
        yield lambda image: stub.Segment(
            pb.SegmentRequest(image=image, prompts=[POINT]), timeout=300
        )


def states(service: Service) -> set[str]:
    """What the services tell of Redis, all of which are ready."""
    reply = httpx.get(f"{service.url}/readyz", timeout=60)
    assert reply.status_code == 200
    return {part["redis"] for part in reply.json()["services"].values()}


def picture(number: int) -> pb.Image:
    file = BytesIO()
    Image.new("RGB", (64, 48), (number % 256, number // 256, 90)).save(file, "PNG")
    return pb.Image(encoded=file.getvalue())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_head_finds_what_another_had_encoded(
    shared: Service, store: RedisServer, segment: Callable[[pb.Image], pb.SegmentResponse]
) -> None:
    image = picture(60_000)
    first = segment(image)
    assert not first.image.cached
    client = redis.Redis(port=store.port)
    until(lambda: len(list(client.scan_iter("samclip:cache:*"))) == 3)
    client.close()
    labels = ["a", "b"]
    with grpc.insecure_channel(shared.address) as channel:
        request = pb.SegmentTextRequest(image=pb.Image(key=first.image.key), labels=labels)
        answer = rpc.SemanticSegmentationServiceStub(channel).SegmentText(request, timeout=300)
    assert answer.image.cached
    assert segment(pb.Image(key=first.image.key)).results == first.results


def test_redis_is_killed_under_load_and_comes_back(
    shared: Service, store: RedisServer, segment: Callable[[pb.Image], pb.SegmentResponse]
) -> None:
    """Not one request fails; afterwards the cache is used again."""
    assert states(shared) == {"up"}
    stop, numbers = threading.Event(), count()

    def ask() -> int:
        answered = 0
        while not stop.is_set():
            assert len(segment(picture(next(numbers))).results) == 1
            answered += 1
        return answered

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(ask) for _ in range(CALLERS)]
        try:
            until(lambda: next(numbers) > 20)
            store.kill()
            until(lambda: states(shared) == {"down"})
            store.start()
            until(lambda: states(shared) == {"up"})
        finally:
            stop.set()
    assert all(caller.result() > 0 for caller in callers)
    with redis.Redis(port=store.port) as client:
        until(lambda: segment(picture(next(numbers))) and client.dbsize() >= 3)
