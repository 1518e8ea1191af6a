"""Observability of the real service: counters, dashboards, traces and the log."""

import base64
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from google.protobuf.message import Message
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests import otlp_collector, prometheus_server, redis_server
from tests.checkout import ROOT
from tests.e2e.conftest import Service, start
from tests.in_process import png
from tests.otlp_collector import Collector
from tests.prometheus_server import CONFIGURATION, Prometheus
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
REQUESTS, CALLERS = 500, 8
LABELS = ["a cat", "a dog"]
GRAFANA = ROOT / "deploy/grafana"
# Without data here: random weights have no measured quality, and this service no certificate.
EMPTY = {"Quality", "SamclipCertificateExpires", "SamclipCertificateExpiresToday"}
CODES = {200: "OK", 400: "INVALID_ARGUMENT", 409: "FAILED_PRECONDITION", 404: "NOT_FOUND"}
CODES |= {415: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED"}
Outcome = tuple[str, str, str]  # service, rpc, code


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector.running() as collector:
        yield collector


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("store"), "--maxmemory", "1gb") as server:
        yield server


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    collector: Collector,
    store: RedisServer,
) -> Iterator[Service]:
    """Run a service with Redis, a log line per request, traces, and a short queue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds
        running = start(
            tmp_path_factory.mktemp("watched"),
            str(tiny_checkpoint),
            REDIS_URL=store.url,
            REDIS_TIMEOUT_MS=10_000,
            MAX_BATCH_SIZE=2,
            MAX_QUEUE=2,
            LOG_LEVEL="INFO",
            OTLP_ENDPOINT=collector.url,
        )
        yield running
        assert running.stop() == 0


class Load:
    """A load of every kind of request, and its outcomes as the caller sees them."""

    def __init__(self, service: Service):
        self.channel = grpc.insecure_channel(service.address)
        self.http = httpx.Client(base_url=service.url, timeout=300)
        self.fresh = count()
        known = self.picture()
        self.click = {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "BYTES",
                    "shape": [1],
                    "data": [base64.b64encode(known).decode()],
                },
                {"name": "points", "datatype": "FP32", "shape": [1, 2], "data": [9, 9]},
                {"name": "point_labels", "datatype": "INT32", "shape": [1], "data": [1]},
            ]
        }
        self.key = self.http.post("/embed", files={"image": known}).json()["image"]["key"]
        self.kinds: list[Callable[[], Outcome]] = [
            lambda: self.grpc("ClassificationService", "Classify", self.classify(self.image)),
            lambda: self.grpc("ClassificationService", "Classify", self.classify()),
            lambda: self.grpc("ClassificationService", "Classify", self.classify(self.unknown)),
            lambda: self.grpc("SegmentationService", "Segment", self.segment(self.image)),
            lambda: self.grpc("SegmentationService", "Segment", self.segment(self.unknown)),
            lambda: self.grpc("RetrievalService", "Search", pb.SearchRequest(collection="none")),
            lambda: self.post("/classify", json={"image": {"key": self.key}, "labels": LABELS}),
            lambda: self.post("/classify", json={"image": {"key": "0" * 64}, "labels": LABELS}),
            lambda: self.post("/classify", content=b"{", headers={"content-type": "text/x"}),
            lambda: self.post("/semantic", json={"colour": 1}),
            lambda: self.post("/semantic", json={"image": {"key": self.key}, "labels": LABELS}),
            lambda: self.post("/describe", json={"collection": "none"}),
            lambda: self.post("/v2/models/segment/infer", json=self.click),
        ]

    def picture(self) -> bytes:
        number = next(self.fresh)
        file = BytesIO()
        Image.new("RGB", (64, 48), (number % 256, number // 256, 7)).save(file, "PNG")
        return file.getvalue()

    @property
    def image(self) -> pb.Image:
        return pb.Image(key=self.key)

    unknown = pb.Image(key="0" * 64)

    def classify(self, *images: pb.Image) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(images=images, labels=LABELS)

    def segment(self, image: pb.Image) -> pb.SegmentRequest:
        return pb.SegmentRequest(image=image, prompts=[pb.Prompt(points=[pb.Point(x=9, y=9)])])

    def grpc(self, service: str, name: str, request: Message, **metadata: str) -> Outcome:
        call = getattr(getattr(rpc, f"{service}Stub")(self.channel), name)
        try:
            call(request, timeout=300, metadata=tuple(metadata.items()))
        except grpc.RpcError as error:
            return service, name, error.code().name
        return service, name, "OK"

    def post(self, path: str, **body: Any) -> Outcome:
        service, name = {
            "/classify": ("ClassificationService", "Classify"),
            "/semantic": ("SemanticSegmentationService", "SegmentText"),
            "/describe": ("RetrievalService", "Describe"),
            "/v2/models/segment/infer": ("OpenInference", "infer"),  # not as Segment too
        }[path]
        return service, name, CODES[self.http.post(path, **body).status_code]

    def many_new_images(self) -> Outcome:
        """Send more images than the queue holds, so that the request may be refused."""
        images = [pb.Image(encoded=self.picture()) for _ in range(16)]
        return self.grpc("ClassificationService", "Classify", self.classify(*images))

    def run(self, requests: int) -> Counter[Outcome]:
        def ask(number: int) -> Outcome:
            if number % 50 == 0:
                return self.many_new_images()
            return self.kinds[number % len(self.kinds)]()

        with ThreadPoolExecutor(CALLERS) as pool:
            return Counter(pool.map(ask, range(requests)))


@pytest.fixture(scope="module")
def load(watched: Service) -> Iterator[Load]:
    load = Load(watched)
    yield load
    load.channel.close()
    load.http.close()


@pytest.fixture(scope="module")
def prometheus(watched: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    target = f"127.0.0.1:{watched.http_port}"
    with prometheus_server.running(tmp_path_factory.mktemp("prometheus"), target) as server:
        yield server


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def counted(service: Service) -> Counter[Outcome]:
    """Return the counters of all services except the backbone, which heads call as well."""
    text = httpx.get(f"{service.url}/metrics", timeout=60).text
    return Counter(
        {
            (s.labels["service"], s.labels["rpc"], s.labels["code"]): int(s.value)
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name == "samclip_requests_total" and s.labels["service"] != "BackboneService"
        }
    )


def test_counters_agree_exactly_with_a_callers_own(
    watched: Service, load: Load, prometheus: Prometheus
) -> None:
    before = counted(watched)
    seen = load.run(REQUESTS)
    assert sum(seen.values()) == REQUESTS
    assert {code for _, _, code in seen} == set(CODES.values())
    assert counted(watched) - before == seen


def test_a_request_has_one_line_in_each_service_and_one_trace(
    watched: Service, load: Load, collector: Collector
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    names = {"x-request-id": "watch-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    request = load.segment(pb.Image(encoded=load.picture()))
    assert load.grpc("SegmentationService", "Segment", request, **names)[2] == "OK"

    asked = {"message": "answered", "request_id": "watch-1"}
    until(lambda: len(watched.lines(**asked)) >= 2)
    lines = watched.lines(**asked)
    assert sorted((line["service"], line["rpc"], line["code"]) for line in lines) == [
        ("BackboneService", "Embed", "OK"),
        ("SegmentationService", "Segment", "OK"),
    ]

    def spans() -> set[tuple[str, str]]:
        return {(service, name) for at, name, service in collector.spans if at == trace}

    head, backbone = "samclip-segmentation", "samclip-backbone"
    expected = {
        (head, "SegmentationService/Segment"),
        (head, "cache_l1"),
        (head, "redis mget"),
        (head, "encode"),
        (backbone, "BackboneService/Embed"),
        (backbone, "decode"),
        (backbone, "batch of image_encoder"),
        (backbone, "execute"),
    }
    until(lambda: expected <= spans())


def queries() -> dict[str, list[str]]:
    """Return the queries of every panel and rule; those of alerts without their comparison."""
    found = {}
    for path in sorted((GRAFANA / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found[panel["title"]] = [
                re.sub(r"\$(namespace|node)\b", ".*", target["expr"]).replace(
                    "$__rate_interval", "1m"
                )
                for target in panel["targets"]
            ]
    for group in yaml.safe_load((CONFIGURATION / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            query = rule["expr"]
            if "alert" in rule:
                query = re.sub(r" (==|>|<) [\d.* ]+$", "", query)
                query = re.sub(r"^absent\((.*)\)$", r"\1", query)
                assert query != rule["expr"]
            found[rule.get("alert") or rule["record"]] = [query]
    return found


def test_every_panel_and_every_rule_has_data(load: Load, prometheus: Prometheus) -> None:
    until(lambda: load.run(50) and not without_data(prometheus))
    for job in ("samclip", "samclip-front-door"):
        assert prometheus.query(f'up{{job="{job}"}}') == [1]
    for group in prometheus.get("rules")["groups"]:
        rare = group["interval"] > 60  # may not have been evaluated yet
        health = {rule["health"] for rule in group["rules"]}
        assert health == {"ok"} or (rare and health == {"unknown"}), group["name"]


def without_data(prometheus: Prometheus) -> list[str]:
    return [
        name
        for name, asked in queries().items()
        if name not in EMPTY and not all(prometheus.query(query) for query in asked)
    ]


def test_every_line_is_json_and_those_of_a_request_have_its_id(
    watched: Service, load: Load, store: RedisServer
) -> None:
    before, _, after = watched.log.read_text().partition("ready in ")
    assert all(map(json.loads, before.splitlines()[1:]))
    assert len(after.partition("Ctrl-C stops.\n")[0].splitlines()) == 4
    load.http.get("/not\\there\\")
    store.kill()
    for number in range(3):
        asked = load.http.post(
            "/classify",
            files={"image": png(noise=number)},
            data={"labels": LABELS},
            headers={"x-request-id": "one-id.from-the_caller"},
        )
        assert asked.status_code == 200, asked.text
        assert asked.headers["x-request-id"] == "one-id.from-the_caller"
    until(lambda: watched.lines(path="/not\\there\\", method="GET"))
    until(lambda: watched.lines(id="one-id.from-the_caller", path="/classify"))
    failed = {"logger": "services.cache.connection", "request_id": "one-id.from-the_caller"}
    until(lambda: watched.lines(**failed))
