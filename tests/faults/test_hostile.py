"""Malicious requests under a load that they must not affect."""

import asyncio
import base64
import os
import secrets
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.e2e.conftest import Service
from tests.faults import processes
from tests.faults.conftest import Loaded
from tests.faults.load import OPTIONS, Load, Pictures
from tests.faults.test_processes import FAULTS, ROOMY_S

pytestmark = [pytest.mark.e2e, FAULTS]

STORM_S = 6
NOBODY = 65534

Attack = Callable[[], Awaitable[str]]
"""Sends one hostile request and returns its outcome."""


async def storm(load: Load, attackers: int, attack: Attack) -> Counter[str]:
    """Run ``attackers`` for STORM_S under load, and return the outcomes of their requests."""
    outcomes: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def attacker() -> None:
        while not stopped.is_set():
            outcomes[await attack()] += 1
            await asyncio.sleep(0.05)

    load.mark()
    attacking = [asyncio.create_task(attacker()) for _ in range(attackers)]
    await asyncio.sleep(STORM_S)
    stopped.set()
    await asyncio.gather(*attacking)
    await load.recovered(ROOMY_S)
    return outcomes


async def code_of(call: Awaitable[object]) -> str:
    """Return the name of the call's gRPC status."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def posting(client: httpx.AsyncClient, path: str, **content: object) -> Attack:
    """Return an attack that posts the same request each time."""

    async def attack() -> str:
        reply = await client.post(path, **content)  # type: ignore[arg-type]
        return f"HTTP {reply.status_code}"

    return attack


def private_bytes(service: Service) -> int:
    """Return the private memory of all processes of the service."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in service.processes())


async def test_another_user_looks_for_a_way_in(loaded: Loaded, service: Service) -> None:
    """Other users cannot open the service's folder; test_neighbours.py in e2e checks its files."""
    if os.geteuid():
        pytest.skip("only root may become another user")
    async with loaded("another user reads and writes the folder of the service") as load:
        load.mark()
        tried = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", INTRUDER, "sh", *_folders(service)],
            capture_output=True,
            text=True,
            check=False,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
        )
        await load.recovered(ROOMY_S)
    assert tried.stdout == ""
    assert tried.stderr.count("Permission denied") == 2 * len(_folders(service))
    assert not load.all_failures()


INTRUDER = 'for folder; do ls "$folder"; touch "$folder/x" && echo written; done'


def _folders(service: Service) -> list[str]:
    """Return the private folders of the launcher, from the environment of its children."""
    folders = {
        str(Path(process.environ()["PROMETHEUS_MULTIPROC_DIR"]).parent)
        for process in processes.titled(service, "ServeReplica")
    }
    assert folders
    return sorted(folders)


async def test_forms_in_a_charset_that_takes_seconds(loaded: Loaded, service: Service) -> None:
    boundary = "b" * 20
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="labels"\r\n\r\n'
    body = part.encode() + b"a" * 600_000 + f"\r\n--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}; charset=punycode"
    async with (
        httpx.AsyncClient(base_url=service.url, timeout=60) as client,
        loaded("forms of 600 kB in punycode, 4 callers") as load,
    ):
        attack = posting(client, "/classify", content=body, headers={"content-type": kind})
        outcomes = await storm(load, 4, attack)
    assert outcomes.keys() == {"HTTP 400"}
    assert not load.all_failures()


async def test_messages_that_inflate(loaded: Loaded, service: Service) -> None:
    """100 kB of gzip expand to 100 MB of zeros."""
    bomb = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(100 * 2**20))], labels=["a"])
    before = private_bytes(service)
    async with (
        grpc.aio.insecure_channel(
            service.address, OPTIONS, compression=grpc.Compression.Gzip
        ) as channel,
        loaded("gRPC messages of 100 MB in 100 kB of gzip, 2 callers") as load,
    ):
        stub = rpc.ClassificationServiceStub(channel)
        outcomes = await storm(load, 2, lambda: code_of(stub.Classify(bomb, timeout=60)))
        grown = private_bytes(service) - before
    assert outcomes.keys() <= {"UNIMPLEMENTED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert grown < 100 * 2**20
    assert not load.all_failures()


async def test_inner_ports_without_the_secret(loaded: Loaded, service: Service) -> None:
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.inner_http_port}") as client,
        loaded("requests to inner ports without the secret, 8 callers") as load,
    ):
        attack = posting(client, "/classification/classify", json={"labels": ["a"]})
        outcomes = await storm(load, 8, attack)
    assert outcomes.keys() == {"HTTP 401"}
    assert not load.all_failures()


async def test_everything_of_a_dense_grid_with_half_a_second(
    loaded: Loaded, service: Service, pictures: Pictures
) -> None:
    """Work stops soon after its deadline, so that other requests are answered."""
    request = pb.SegmentEverythingRequest(
        image=pb.Image(encoded=pictures[0].file), points_per_side=64
    )
    async with (
        grpc.aio.insecure_channel(service.address, OPTIONS) as channel,
        loaded("SegmentEverything of 64×64 points, deadline 0.5 s, 2 callers") as load,
    ):
        stub = rpc.SegmentationServiceStub(channel)
        attack: Attack = lambda: code_of(stub.SegmentEverything(request, timeout=0.5))  # noqa: E731
        outcomes = await storm(load, 2, attack)
    assert outcomes.keys() <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert not load.all_failures()


async def test_callers_over_http_hang_up(
    loaded: Loaded, service: Service, pictures: Pictures
) -> None:
    """Requests to index 40 new images are abandoned after 0.5 s."""
    async with (
        httpx.AsyncClient(base_url=service.url) as client,
        loaded("POST /index of 40 new images, abandoned after 0.5 s, 2 callers") as load,
    ):

        async def attack() -> str:
            items = [
                {"id": str(i), "image": _base64(pictures.file(0, fresh=True))} for i in range(40)
            ]
            body = {"collection": f"abandoned-{secrets.token_hex(4)}", "items": items}
            try:
                await client.post("/index", json=body, timeout=httpx.Timeout(60, read=0.5))
            except httpx.TimeoutException:
                return "abandoned"
            return "answered"

        outcomes = await storm(load, 2, attack)
    assert outcomes["abandoned"]
    assert not load.all_failures()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def test_a_crowd_of_health_watchers(loaded: Loaded, service: Service) -> None:
    """Watchers beyond the limit are refused, and Check is still answered."""
    async with (
        grpc.aio.insecure_channel(service.address, OPTIONS) as channel,
        loaded("300 callers of Health/Watch") as load,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        load.mark()
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(300)]
        first = await asyncio.gather(*(code_of(call.read()) for call in watching))
        assert await code_of(stub.Check(health_pb2.HealthCheckRequest(), timeout=60)) == "OK"
        await asyncio.sleep(STORM_S)
        for call in watching:
            call.cancel()
        await load.recovered(ROOMY_S)
    outcomes = Counter(first)
    assert outcomes.keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert outcomes["OK"] <= 64
    assert not load.all_failures()


async def test_a_page_whose_name_points_here(loaded: Loaded, service: Service) -> None:
    """DNS rebinding makes a browser treat the service as the page's own host."""
    evil = {"host": "evil.example", "origin": "http://evil.example"}
    async with (
        httpx.AsyncClient(base_url=service.url, headers=evil) as client,
        loaded("pages of another host, by DNS rebinding, 4 callers") as load,
    ):
        attack = posting(client, "/delete", json={"collection": "pets", "all": True})
        outcomes = await storm(load, 4, attack)
    assert outcomes.keys() <= {"HTTP 403", "HTTP 421"}
    assert not load.all_failures()


async def test_words_without_end(loaded: Loaded, service: Service) -> None:
    """Each text is one new word of 2,000 letters."""
    async with (
        grpc.aio.insecure_channel(service.address, OPTIONS) as channel,
        loaded("words of 2,000 letters, 4 callers") as load,
    ):
        stub = rpc.BackboneServiceStub(channel)

        def attack() -> Awaitable[str]:
            texts = [secrets.token_hex(1000)]
            return code_of(stub.EmbedText(pb.EmbedTextRequest(texts=texts), timeout=60))

        outcomes = await storm(load, 4, attack)
    assert outcomes.keys() == {"OK"}
    assert not load.all_failures()
