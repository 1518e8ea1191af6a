"""A service as an operator runs it: its keys, counters, dashboards, traces, log and stop."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import samclip
import yaml
from prometheus_client.parser import text_string_to_metric_families
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from services.front_door import keys
from tests import otlp_collector, prometheus_server, redis_server
from tests.checkout import ROOT
from tests.e2e.conftest import Service, start
from tests.e2e.mixed_load import CODES, LABELS, Load, Outcome
from tests.in_process import png
from tests.otlp_collector import Collector
from tests.prometheus_server import CONFIGURATION, Prometheus
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
REQUESTS = 300
GRAFANA = ROOT / "deploy/grafana"
# Without data here: random weights have no measured quality, and this service no certificate.
EMPTY = {"Quality", "SamclipCertificateExpires", "SamclipCertificateExpiresToday"}
SCOPES = {"ann": ("read", "index"), "bob": tuple(keys.SCOPES), "eve": ("read",)}
SECRETS = {name: f"the secret of {name}" for name in SCOPES}
KEYS = [keys.Key(keys.digest(SECRETS[name]), name, SCOPES[name], name) for name in SCOPES]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector.running() as collector:
        yield collector


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server.running(tmp_path_factory.mktemp("store"), "--maxmemory", "1gb") as server:
        yield server


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    keys.write(file, KEYS)
    return file


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    collector: Collector,
    store: RedisServer,
    key_file: Path,
) -> Iterator[Service]:
    """Run a service with keys, Redis, a log line per request, traces, and a short queue."""
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
            API_KEYS_FILE=key_file,
        )
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def load(watched: Service) -> Iterator[Load]:
    load = Load(watched, SECRETS["bob"])
    yield load
    load.close()


@pytest.fixture(scope="module")
def prometheus(watched: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory, target = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{watched.http_port}"
    (directory / "key").write_text(SECRETS["ann"])
    with prometheus_server.running(directory, target, key=directory / "key") as server:
        yield server


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def counted(load: Load) -> Counter[Outcome]:
    """Return the counters of all services except the backbone, which heads call as well."""
    text = load.http.get("/metrics").text
    return Counter(
        {
            (s.labels["service"], s.labels["rpc"], s.labels["code"]): int(s.value)
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name == "samclip_requests_total" and s.labels["service"] != "BackboneService"
        }
    )


def client(service: Service, name: str) -> samclip.Client:
    return samclip.Client(service.address, api_key=SECRETS.get(name, name), timeout=300)


def test_a_caller_without_a_key_learns_nothing(
    watched: Service, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    with httpx.Client(base_url=watched.url, timeout=60) as nobody:
        assert nobody.get("/readyz").json()["ready"] is True
        for path in ("/metrics", "/index", "/backbone/healthz", "/v2/health/live"):
            assert nobody.get(path).status_code == 401
    server = ["describe", "--server", watched.address, "--api-key"]
    assert cli.main([*server, SECRETS["bob"]]) == 0
    assert cli.main([*server, "wrong"]) == 1
    assert "no API key, or an unknown one" in capsys.readouterr().err


def test_a_key_may_do_what_its_scopes_say_and_that_is_written_down(
    watched: Service, photo: bytes
) -> None:
    with client(watched, "ann") as ann:
        assert ann.index("pets", {"chelsea": photo}).indexed == 1
        with pytest.raises(samclip.PermissionDenied, match="no scope 'admin'"):
            ann.delete("pets", all=True)
        assert ann.describe()[0].count == 1
    common = {"key": "ann", "tenant": "ann"}  # Ray forwards the logs of its processes with a delay
    until(lambda: watched.lines(audit="Index", scope="index", code="OK", **common))
    until(lambda: watched.lines(audit="Delete", scope="admin", **common))
    assert watched.lines(refused="key", method="GET", path="/index")
    assert not any(secret in watched.log.read_text() for secret in SECRETS.values())


def test_tenants_do_not_see_each_other(watched: Service, photo: bytes) -> None:
    with client(watched, "ann") as ann, client(watched, "bob") as bob:
        image = ann.image(photo)
        image.classify(LABELS)
        with pytest.raises(samclip.KeyUnknown):
            bob.by_key(image.key).classify(LABELS)
        ann.index("secrets", {"chelsea": photo})
        with pytest.raises(samclip.NotFound):
            bob.search("secrets", text="a cat")


def test_counters_agree_exactly_with_a_callers_own(load: Load, prometheus: Prometheus) -> None:
    before = counted(load)
    seen = load.run(REQUESTS)
    assert sum(seen.values()) == REQUESTS
    assert {code for _, _, code in seen} == set(CODES.values())
    assert counted(load) - before == seen


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
        ask = partial(
            load.http.post,
            "/classify",
            files={"image": png(noise=number)},
            data={"labels": LABELS},
            headers={"x-request-id": "one-id.from-the_caller"},
        )
        while (asked := ask()).status_code == 429:  # the load of an earlier test waits
            time.sleep(0.2)
        assert asked.status_code == 200, asked.text
        assert asked.headers["x-request-id"] == "one-id.from-the_caller"
    until(lambda: watched.lines(path="/not\\there\\", method="GET"))
    until(lambda: watched.lines(id="one-id.from-the_caller", path="/classify"))
    failed = {"logger": "services.cache.connection", "request_id": "one-id.from-the_caller"}
    until(lambda: watched.lines(**failed))


def test_ctrl_c_ends_all_of_a_service_and_nothing_of_another(
    watched: Service, service: Service
) -> None:
    assert len(watched.processes()) > 8
    assert watched.stop() == 0
    assert not watched.processes()
    assert "Traceback" not in watched.log.read_text()
    # Another test killed its Redis, which it may say at any time, also of a caller's last request.
    lines = [line for line in watched.lines() if "cache.connection" not in line.get("logger", "")]
    last = [line["message"] for line in lines if "message" in line]  # others are of the audit
    *others, end = last[last.index("stopping …") + 1 :]
    assert end == "stopped by Ctrl-C"
    expected = ("Proxy ", "the index in Redis failed: ")
    assert [line for line in others if not line.startswith(expected)] == []
    assert httpx.get(f"{service.url}/readyz", timeout=60).json()["ready"] is True
