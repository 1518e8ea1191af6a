"""``serve deploy`` on a real cluster of two nodes, each in its own network namespace.

``make cluster`` runs these tests, which take minutes and need root for the second namespace.
"""

import asyncio
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from samclip_core.io import checkpoint
from services.deployment.models import DRAIN_S
from tests.checkout import ROOT
from tests.e2e.callers import ASKED, Load, load, mistakes
from tests.e2e.cluster import (
    HEAD,
    PATIENCE_S,
    SPACE,
    WORKER,
    Cluster,
    kill,
    ready,
    recovered,
    started,
)
from tests.tiny import make_tiny_checkpoint

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="takes minutes: run make cluster"),
]


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
    with started(directory, checkpoints[0]) as found:
        yield found


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
