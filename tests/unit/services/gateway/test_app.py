"""The pages of the gateway, called without a socket."""

import asyncio
import io
import posixpath
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import samclip
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from PIL import Image
from prometheus_client import Metric
from samclip.v1 import samclip_pb2 as pb

from services.deployment import replica
from services.gateway import readiness, scrape
from services.gateway.adapters.adapter import MAX_AT_ONCE
from services.gateway.app import CERTIFICATE_END, MAX_WATCHERS, PAGES, Gateway, build, pages
from services.gateway.readiness import Readiness
from services.request import calls
from services.request.routes import ROUTES
from services.settings import Settings
from tests.in_process import SECRET
from tests.ports import free_port

ABOUT = {"grpc_port": 9000, "max_metadata_bytes": 4096}


class Fixed(Readiness):
    """A Readiness with a fixed report."""

    def __init__(self, **ready: bool):
        self.reports = {name: {"ready": value} for name, value in ready.items()}

    async def report(self) -> dict[str, dict[str, Any]]:
        return self.reports


class Context:
    """The part of a gRPC context that health checks use."""

    def __init__(self, secret: str = SECRET) -> None:
        self.code, self.trailer, self._secret = StatusCode.OK, dict[str, str](), secret

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(calls.SECRET_HEADER, self._secret)]

    def set_code(self, code: StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        assert details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailer = dict(metadata)


async def counted() -> dict[str, list[Metric]]:
    return {"this node": scrape.of_node()}


async def one_head(headers: Mapping[str, str]) -> list[pb.ListedHead]:
    return [pb.ListedHead(name="mine")] if "x-samclip-key" in headers else []


def client(readiness: Readiness) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(pages(readiness, counted, ABOUT, one_head))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def door() -> AsyncIterator[httpx.AsyncClient]:
    async with client(Fixed(backbone=True)) as opened:
        yield opened


async def files(door: httpx.AsyncClient, page: str) -> dict[str, httpx.Response]:
    """Return a page, and all files that it loads, directly or not, by path."""
    found, wanted = {}, [page]
    while wanted:
        path = wanted.pop()
        found[path] = await door.get(path)
        kind = found[path].headers["content-type"]
        for attribute, module in (
            re.findall(PARTS, found[path].text) if "static" not in path else ()
        ):
            target = attribute or posixpath.join(posixpath.dirname(path), module)
            assert kind.startswith(("text/html", "text/javascript", "text/css")), path
            wanted += [] if target in found else [posixpath.normpath(target)]
    return found


PARTS = r"""(?:(?:src|href)="(?!data:)([^"]+)"|from "([^"]+)")"""


@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_pages_load_files_of_this_service_only(door: httpx.AsyncClient, page: str) -> None:
    found = await files(door, page)
    assert len(found) >= 6
    for path, reply in found.items():
        assert path.startswith("/")
        assert reply.status_code == 200, path
        if reply.headers["content-type"].startswith("text/html"):  # scripts are in files
            assert not re.findall(
                r"<script(?![^>]* src=)|<style| on[a-z]+=|javascript:", reply.text
            )


async def test_the_playground_has_its_samples_and_what_it_knows_of_the_service(
    door: httpx.AsyncClient,
) -> None:
    samples = (await door.get("/playground/samples/samples.json")).json()
    assert samples
    for sample in samples:
        assert sample["credit"]
        reply = await door.get(f"/playground/samples/{sample['file']}")
        assert Image.open(io.BytesIO(reply.content)).format == "JPEG"
    assert (await door.get("/playground/service.json")).json() == ABOUT


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
async def test_head_is_answered_as_get(door: httpx.AsyncClient, path: str) -> None:
    head, page = await door.head(path), await door.get(path)
    assert head.status_code == page.status_code == 200
    assert head.headers["content-type"] == page.headers["content-type"]


async def test_the_document_has_the_heads_of_its_reader(door: httpx.AsyncClient) -> None:
    for headers, expected in (({}, False), ({"x-samclip-key": "ann"}, True)):
        document = (await door.get("/openapi.json", headers=headers)).json()
        assert ("/heads/mine" in document["paths"]) is expected


async def test_the_documentation_is_found_with_a_slash_too(door: httpx.AsyncClient) -> None:
    reply = await door.get("/docs/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/docs")
    assert (await door.get("/docs/static/swagger-ui.css")).status_code == 200


async def test_metrics_are_ours_alone_and_tell_which_applications_are_ready() -> None:
    async with client(Fixed(backbone=True, semantic=False)) as door:
        text = (await door.get("/metrics")).text
    samples = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith("samclip_") for line in samples)
    assert 'samclip_ready{application="backbone"} 1.0' in samples
    assert 'samclip_ready{application="semantic"} 0.0' in samples


async def test_the_end_of_the_certificate_is_a_metric_where_there_is_one(
    door: httpx.AsyncClient,
) -> None:
    name = "samclip_certificate_expiry_timestamp_seconds"
    assert name not in (await door.get("/metrics")).text
    text = (await door.get("/metrics", headers={CERTIFICATE_END: "1798761599"})).text
    (line,) = (each for each in text.splitlines() if each.startswith(name))
    assert float(line.split()[1]) == 1798761599


async def test_ready_is_ready_only_when_all_are() -> None:
    async with client(Fixed(backbone=True, semantic=False)) as door:
        reply = await door.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["ready"] is False
        assert reply.json()["services"]["backbone"] == {"ready": True}
        assert (await door.get("/healthz")).status_code == 200


async def test_what_an_application_says_of_itself_is_passed_on() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "backbone" in request.url.path:
            headers = {"content-type": "application/problem+json"}
            return httpx.Response(503, json={"detail": "the device hangs"}, headers=headers)
        return httpx.Response(200, json={"redis": "up"})

    readiness = Readiness(Settings(inner_http_port=free_port()))
    readiness._client = httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://test"
    )
    report = await readiness.report()
    assert report["backbone"] == {"ready": False, "reason": "the device hangs"}
    assert report["semantic"] == {"ready": True, "redis": "up"}


class Counting(Readiness):
    """A Readiness that counts its checks, and blocks until it is released."""

    def __init__(self, ready: bool = True):
        super().__init__(Settings(inner_http_port=free_port()))
        self.ready, self.asked, self.gate = ready, 0, asyncio.Event()

    async def _ask(self, application: str) -> dict[str, Any]:
        self.asked += 1
        await self.gate.wait()
        return {"ready": self.ready}


async def test_all_who_ask_share_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH_S", 1e6)
    counting = Counting()
    asking = [asyncio.create_task(counting.report()) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()
    counting.gate.set()
    (gone, *reports) = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(gone, asyncio.CancelledError)
    assert all(report == {name: {"ready": True} for name in ROUTES} for report in reports)
    await counting.report()
    assert counting.asked == len(ROUTES)


@pytest.mark.parametrize(("ready", "asked"), [(True, "FRESH_S"), (False, "FRESH_WHILE_STARTING_S")])
async def test_a_report_grows_old(monkeypatch: pytest.MonkeyPatch, ready: bool, asked: str) -> None:
    for name in ("FRESH_S", "FRESH_WHILE_STARTING_S"):
        monkeypatch.setattr(readiness, name, 1e6)
    monkeypatch.setattr(readiness, asked, -1)
    counting = Counting(ready)
    counting.gate.set()
    await counting.report()
    await counting.report()
    assert counting.asked == 2 * len(ROUTES)


async def test_an_application_that_does_not_answer_is_not_ready() -> None:
    report = await Readiness(Settings(inner_http_port=free_port())).report()
    assert set(report) == set(ROUTES)
    assert not any(state["ready"] for state in report.values())
    assert all(state["reason"] for state in report.values())


def gateway(**ready: bool) -> Gateway:
    made = Gateway(Settings())
    made.readiness = Fixed(**ready)
    return made


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", HealthCheckResponse.NOT_SERVING),
        ("samclip.v1.BackboneService", HealthCheckResponse.SERVING),
        ("samclip.v1.SemanticSegmentationService", HealthCheckResponse.NOT_SERVING),
        ("samclip.v1.CustomHeadService", HealthCheckResponse.NOT_SERVING),
    ],
)
async def test_health_of_the_whole_and_of_each_service(
    service: str, status: HealthCheckResponse.ServingStatus
) -> None:
    service_gateway, context = (
        gateway(backbone=True, semantic=False, **{"head-a": False}),
        Context(),
    )
    request = HealthCheckRequest(service=service)
    assert (await service_gateway.Check(request, context)).status == status
    assert context.trailer == {"x-samclip-version": samclip.__version__}
    async for first in service_gateway.Watch(request, Context()):
        assert first.status == status
        break


async def test_only_so_many_may_watch() -> None:
    served, request = gateway(backbone=True), HealthCheckRequest()
    contexts = [Context() for _ in range(MAX_WATCHERS)]
    watching = [served.Watch(request, context) for context in contexts]
    for watcher in watching:
        assert (await anext(watcher)).status == HealthCheckResponse.SERVING
    one_more = Context()
    assert not [status async for status in served.Watch(request, one_more)]
    assert one_more.code is StatusCode.RESOURCE_EXHAUSTED
    await watching.pop().aclose()
    watching.append(served.Watch(request, Context()))
    assert (await anext(watching[-1])).status == HealthCheckResponse.SERVING
    for watcher in watching:
        await watcher.aclose()
    assert served.watchers == 0


def test_watchers_have_places_of_their_own() -> None:
    deployed = build(Settings())._bound_deployment
    assert deployed.max_ongoing_requests == replica.MAX_ONGOING + MAX_AT_ONCE + MAX_WATCHERS


@pytest.mark.parametrize(
    ("service", "secret", "code"),
    [("other", SECRET, "NOT_FOUND"), ("", "guessed", "UNAUTHENTICATED")],
)
async def test_health_is_refused_without_the_secret_and_for_an_unknown_service(
    service: str, secret: str, code: str
) -> None:
    context, request = Context(secret), HealthCheckRequest(service=service)
    assert await gateway(backbone=True).Check(request, context) == HealthCheckResponse()
    assert context.code.name == code


async def test_health_is_watched_only_through_the_front_door() -> None:
    watching = Context("guessed")
    assert not [status async for status in gateway().Watch(HealthCheckRequest(), watching)]
    assert watching.code is StatusCode.UNAUTHENTICATED


def test_no_script_of_the_playground_is_longer_than_350_lines() -> None:
    assert max(len(file.read_text().splitlines()) for file in PAGES.glob("*.js")) <= 350
