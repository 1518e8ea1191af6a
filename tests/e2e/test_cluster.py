"""``serve deploy`` on a real cluster of two nodes, each in its own network namespace.

``make cluster`` runs these tests, which take minutes and need root for the second namespace.
"""

import asyncio
import copy
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as stubs

from samclip_core.io import checkpoint
from services.deployment.swap import DRAIN_S
from tests.checkout import ROOT, sources
from tests.e2e.conftest import processes_with
from tests.in_process import png
from tests.tiny import make_tiny_checkpoint

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="takes minutes: run make cluster"),
]

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
SPACE = "samclip-worker"
BIN = Path(sys.executable).parent
CLIENTS = 6
ASKED = ("SegmentationService", "ClassificationService")
PATIENCE_S = 300


def run(*command: str | Path, **options: Any) -> None:
    subprocess.run([str(part) for part in command], check=True, timeout=PATIENCE_S, **options)


def environment(directory: Path, secret: str) -> dict[str, str]:
    """Return the environment of a node as in deploy/README.md, with its own folders."""
    lines = (ROOT / "deploy/cluster.env").read_text().splitlines()
    common = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    directory.mkdir()
    (directory / "metrics").mkdir()
    own = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": ".",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return (
        {k: v for k, v in os.environ.items() if not k.startswith("SAMCLIP_")}
        | common
        | {f"RAY_SERVE_HAPROXY_{name}": str(directory / path) for name, path in own.items()}
        | {
            "PYTHONPATH": sources(),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
            "SAMCLIP_FRONT_DOOR_SECRET": secret,
            "RAY_AUTH_TOKEN": secret * 2,
            "RAY_ADDRESS": f"{HEAD}:6380",
            "RAY_DASHBOARD_ADDRESS": "http://127.0.0.1:8265",
        }
    )


@dataclass
class Cluster:
    directory: Path
    config: dict[str, Any]
    head: dict[str, str]

    def deploy(self, directory: Path) -> None:
        """Run ``serve deploy`` with this checkpoint in user_config."""
        config = copy.deepcopy(self.config)
        for application in config["applications"]:
            for deployment in application["deployments"]:
                if "user_config" in deployment:
                    deployment["user_config"]["checkpoint"] = str(directory)
        file = self.directory / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        run(BIN / "serve", "deploy", file, env=self.head)

    def status(self) -> dict[str, Any]:
        output = subprocess.run(
            [BIN / "serve", "status"], env=self.head, check=True, capture_output=True, timeout=60
        ).stdout
        found: dict[str, Any] = yaml.safe_load(output)
        return found


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the shipped configuration, reduced for two cores."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/serve_config.yaml").read_text())
    for application in config["applications"]:
        application["args"] = {**settings, "replica_cpus": 0.1}
        (deployment,) = application["deployments"]
        if "autoscaling_config" in deployment:
            deployment["autoscaling_config"]["max_replicas"] = 2
        if application["name"] in ("semantic", "retrieval"):  # not under load below
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = 1
    return config


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    one, two = (make_tiny_checkpoint(directory / f"tiny-{seed}", seed=seed) for seed in (0, 1))
    return one, two


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Make a folder with a short path: socket paths in it may have at most 97 characters."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def cluster(directory: Path, checkpoints: tuple[Path, Path]) -> Iterator[Cluster]:
    secret = secrets.token_hex(16)
    head, worker = (environment(directory / name, secret) for name in ("h", "w"))
    head_network, worker_network = ["ip", "link"], ["ip", "-n", SPACE, "link"]
    run("ip", "netns", "add", SPACE)
    doors = []
    try:
        run(*head_network, "set", "lo", "up")
        run(*head_network, "add", "samclip0", "type", "veth", "peer", "samclip1", "netns", SPACE)
        run("ip", "address", "add", f"{HEAD}/24", "dev", "samclip0")
        run("ip", "-n", SPACE, "address", "add", f"{WORKER}/24", "dev", "samclip1")
        for command in ([*head_network, "set", "samclip0"], [*worker_network, "set", "samclip1"]):
            run(*command, "up")
        run(*worker_network, "set", "lo", "up")
        memory = ("--object-store-memory", "100000000", "--num-cpus", "8", "--disable-usage-stats")
        start = (BIN / "ray", "start", *memory)
        head_options = ("--head", "--port", "6380", "--dashboard-port", "8265")
        run(
            *start,
            *head_options,
            "--node-ip-address",
            HEAD,
            "--temp-dir",
            directory / "h",
            env=head,
        )
        run(
            *("ip", "netns", "exec", SPACE, *start, "--address", f"{HEAD}:6380"),
            *("--node-ip-address", WORKER, "--temp-dir", directory / "w"),
            env=worker,
        )
        settings = {"checkpoint": str(checkpoints[0]), "index_dir": str(directory / "index")}
        found = Cluster(directory, small(settings), head)
        found.deploy(checkpoints[0])
        door = [sys.executable, "-m", "samclip.cli", "front-door"]
        doors.append(subprocess.Popen(door, env=head | {"SAMCLIP_SERVE_HOST": HEAD}))
        wait_until_ready()
        yield found
    finally:
        for door_process in doors:
            door_process.terminate()
            door_process.wait(60)
        kill(SPACE)
        for pid in processes_with(secret):  # `ray stop` would end every Ray on the machine
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "del", SPACE)


def kill(space: str) -> None:
    """Kill all processes of a node at once, like a power failure."""
    pids = subprocess.run(["ip", "netns", "pids", space], check=True, capture_output=True).stdout
    for pid in map(int, pids.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ready() -> dict[str, Any]:
    with suppress(httpx.HTTPError, ValueError):
        report: dict[str, Any] = httpx.get("http://127.0.0.1:8000/readyz", timeout=10).json()
        return report
    return {}


def wait_until_ready() -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ready().get("ready") is not True:
        assert time.monotonic() < deadline, ready()
        time.sleep(0.5)


@dataclass
class Load:
    """Observations of the clients.

    digests: of the answers, in order. errors: (time, message). waiting: requests in flight.
    codes: counts by (service, code).
    """

    digests: list[str] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    waiting: int = 0
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def until(self, count: int) -> None:
        """Wait for ``count`` more answers."""
        target = len(self.digests) + count
        while len(self.digests) < target:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def load() -> AsyncIterator[Load]:
    """Run clients with separate channels that send requests with new pictures in a loop."""
    seen, stop = Load(), asyncio.Event()

    async def ask(client: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel("127.0.0.1:9000", options=options) as channel:
            classify = stubs.ClassificationServiceStub(channel).Classify
            segment = stubs.SegmentationServiceStub(channel).Segment
            number = 0
            while not stop.is_set():
                number += 1
                image = pb.Image(encoded=png(noise=1_000_000 * client + number))
                prompts = [pb.Prompt(points=[pb.Point(x=20, y=15)])]
                seen.waiting += 1
                try:
                    if number % 2:
                        request = pb.ClassifyRequest(images=[image], labels=["a dog", "a cat"])
                        answer = await classify(request, timeout=60)
                    else:
                        answer = await segment(
                            pb.SegmentRequest(image=image, prompts=prompts), timeout=60
                        )
                    seen.digests.append(answer.model.digest)
                    code = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    code = error.code()
                    seen.errors.append((time.monotonic(), f"{code} {error.details()}"))
                finally:
                    seen.waiting -= 1
                seen.codes[ASKED[number % 2], code.name] += 1

    clients = [asyncio.create_task(ask(client)) for client in range(CLIENTS)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def mistakes(seen: Load, number: int) -> None:
    """Send ``number`` requests that must fail, sequentially and thus to alternating replicas."""
    unknown, points = pb.Image(key="0" * 64), [pb.Prompt(points=[pb.Point(x=1, y=1)])]
    async with grpc.aio.insecure_channel("127.0.0.1:9000") as channel:
        classify = stubs.ClassificationServiceStub(channel).Classify
        segment = stubs.SegmentationServiceStub(channel).Segment
        for turn in range(number):
            call = (
                classify(pb.ClassifyRequest(images=[unknown]), timeout=60)
                if turn % 2
                else segment(pb.SegmentRequest(image=unknown, prompts=points), timeout=60)
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            seen.codes[ASKED[turn % 2], refused.value.code().name] += 1


def scrape() -> str:
    """Return the metrics of both nodes."""
    return httpx.get("http://127.0.0.1:8000/metrics", timeout=60).text


def counted() -> dict[str, Counter[tuple[str, str]]]:
    """Return, by node, the counts of answers of the services under load."""
    found: dict[str, Counter[tuple[str, str]]] = {HEAD: Counter(), WORKER: Counter()}
    for family in text_string_to_metric_families(scrape()):
        for sample in family.samples:
            service = sample.labels.get("service")
            if sample.name == "samclip_requests_total" and service in ASKED:
                code = sample.labels["code"]
                found[sample.labels["node"]][service, code] += int(sample.value)
    return found


async def settled(state: str) -> None:
    """Wait until every service reports this swap state ten times; each poll asks one replica."""
    deadline = time.monotonic() + PATIENCE_S
    found: list[str] = []
    while len(found) < 50 or not all(swap.startswith(state) for swap in found[-50:]):
        assert time.monotonic() < deadline, found[-50:]
        services = (await asyncio.to_thread(ready)).get("services", {}).values()
        found += [str(service.get("swap")) for service in services]


async def swapped(cluster: Cluster, directory: Path, load: Load) -> float:
    """Deploy a checkpoint, wait until all answers are from it, and return the seconds taken."""
    start = time.monotonic()
    await asyncio.to_thread(cluster.deploy, directory)
    digest = checkpoint.digest(directory)
    while load.digests[-100:] != [digest] * 100:
        assert time.monotonic() - start < PATIENCE_S, Counter(load.digests[-100:])
        await asyncio.sleep(0.1)
    return time.monotonic() - start


def print_figures(name: str, **figures: Any) -> None:
    print(f"\n{name}: {json.dumps(figures)}")


async def test_counters_of_all_nodes_agree_exactly_with_the_callers_own(cluster: Cluster) -> None:
    before = await asyncio.to_thread(counted)
    async with load() as seen:
        await seen.until(750)
    await mistakes(seen, 250)
    now = await asyncio.to_thread(counted)
    by_node = {node: now[node] - before[node] for node in now}
    print_figures("counters", **{node: sum(counts.values()) for node, counts in by_node.items()})
    assert all(by_node.values())
    assert {code for _, code in seen.codes} == {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    assert sum(by_node.values(), Counter()) == seen.codes


async def test_ray_reports_what_its_dashboard_shows(cluster: Cluster) -> None:
    """The nodes together have each series of the dashboard, and those of Serve by deployment."""
    dashboard = (ROOT / "deploy/grafana/cluster/ray.json").read_text()
    wanted = set(re.findall(r"\b(ray_\w+)\{", dashboard))
    assert len(wanted) > 5
    nodes = json.loads((cluster.directory / "h/prom_metrics_service_discovery.json").read_text())
    deadline = time.monotonic() + PATIENCE_S
    while missing := wanted - {sample.name for sample in samples_of_ray(nodes)}:
        assert time.monotonic() < deadline, missing
        await asyncio.sleep(1)
    served = {
        sample.labels["deployment"]
        for sample in samples_of_ray(nodes)
        if sample.name == "ray_serve_deployment_replica_healthy"
    }
    assert served == {application["name"] for application in cluster.config["applications"]}


async def test_the_autoscaler_sees_the_requests_of_callers(cluster: Cluster) -> None:
    """It counts those in progress in each replica, which include those in its queue."""
    nodes = json.loads((cluster.directory / "h/prom_metrics_service_discovery.json").read_text())
    deadline = time.monotonic() + PATIENCE_S
    seen = set[str]()
    async with load():
        while not {"segmentation", "classification"} <= seen:
            assert time.monotonic() < deadline, seen
            seen |= {
                sample.labels["deployment"]
                for sample in await asyncio.to_thread(samples_of_ray, nodes)
                if sample.name == "ray_serve_autoscaling_total_requests" and sample.value > 0
            }


def samples_of_ray(nodes: list[dict[str, Any]]) -> list[Any]:
    targets = [target for group in nodes for target in group["targets"]]
    texts = [httpx.get(f"http://{target}/metrics", timeout=60).text for target in targets]
    return [
        sample
        for text in texts
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


async def test_a_checkpoint_is_swapped_under_load(
    cluster: Cluster, checkpoints: tuple[Path, Path]
) -> None:
    old, new = map(checkpoint.digest, checkpoints)
    async with load() as seen:
        await seen.until(50)
        assert set(seen.digests) == {old}
        seconds = await swapped(cluster, checkpoints[1], seen)
        await asyncio.sleep(DRAIN_S + 5)
        text = await asyncio.to_thread(scrape)
        back = await swapped(cluster, checkpoints[0], seen)
    print_figures(
        "swap", answers=len(seen.digests), errors=len(seen.errors), seconds=seconds, back=back
    )
    assert seen.errors == []
    assert set(seen.digests) == {old, new}
    assert all(
        f'digest="{new}",kind="edge",name="tiny-edge",node="{node}"' in text
        for node in (HEAD, WORKER)
    )
    assert f'digest="{old}"' not in text


async def test_a_damaged_checkpoint_is_refused(
    cluster: Cluster, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    old = checkpoint.digest(checkpoints[0])
    damaged = make_tiny_checkpoint(tmp_path / "damaged", seed=2)  # not loaded by any replica
    (damaged / checkpoint.WEIGHTS).write_bytes(b"damaged")
    async with load() as seen:
        await asyncio.to_thread(cluster.deploy, damaged)
        await settled("failed")
        await seen.until(50)
        await asyncio.to_thread(cluster.deploy, checkpoints[0])
        await settled("done")
    assert seen.errors == []
    assert set(seen.digests) == {old}


async def test_a_node_is_killed_under_load(cluster: Cluster) -> None:
    async with load() as seen:
        await seen.until(50)
        at_kill, start = seen.waiting, time.monotonic()
        await asyncio.to_thread(kill, SPACE)
        await asyncio.sleep(30)
        deadline = time.monotonic() + PATIENCE_S
        while not recovered(await asyncio.to_thread(cluster.status)):
            assert time.monotonic() < deadline
        whole = time.monotonic() - start
        errors = list(seen.errors)
        await seen.until(100)
    last = max((when - start for when, _ in errors), default=0.0)
    print_figures(
        "kill",
        waiting=at_kill,
        errors=Counter(text for _, text in errors),
        last_error_s=last,
        whole_again_s=whole,
    )
    assert len(seen.errors) <= at_kill, seen.errors
    assert len(errors) == len(seen.errors)


def recovered(status: dict[str, Any]) -> bool:
    applications: Sequence[dict[str, Any]] = status["applications"].values()
    return all(application["status"] == "RUNNING" for application in applications)
