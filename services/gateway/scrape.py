"""What all replicas have counted, on one node or all of a cluster, as Prometheus' text."""

import asyncio
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import ray
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest, multiprocess
from prometheus_client.samples import Sample
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 5.0
"""For a node: less than the ten seconds that Prometheus gives a scrape."""

logger = logging.getLogger(__name__)


def of_node() -> list[Metric]:
    """What the replicas of this node have counted together, without other libraries' metrics.

    They write to the directory in ``PROMETHEUS_MULTIPROC_DIR``; without it, what this process has.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    registry = REGISTRY
    if directory:
        _forget_dead(Path(directory))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=directory)
    found = [metric for metric in registry.collect() if metric.name.startswith("samclip_")]
    for metric in found:
        metric.samples = [sample for sample in metric.samples if not _is_retired(sample)]
    return found


async def of_cluster() -> dict[str, list[Metric]]:
    """What each node has, by its address; one that does not answer in time is left out."""
    alive = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    asked = await asyncio.gather(*(_ask(node["NodeID"]) for node in alive))
    return {
        node["NodeManagerAddress"]: found
        for node, found in zip(alive, asked, strict=True)
        if found is not None
    }


async def _ask(node: str) -> list[Metric] | None:
    if node == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(of_node)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    # A process that has imported this file alone: one with our counters would leave its own there.
    answer = ray.remote(of_node).options(num_cpus=0, scheduling_strategy=there).remote()
    try:
        async with asyncio.timeout(ANSWER_S):
            found: list[Metric] = await answer
            return found
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("node %s does not tell what it has counted: %r", node, error)
        ray.cancel(answer)
        return None


def render(nodes: Mapping[str, Sequence[Metric]], *shared: Metric) -> bytes:
    """Prometheus' text; of several nodes, a sample says which it is of, if it is not ``shared``."""
    families = {metric.name: metric for metric in shared}
    for address, metrics in nodes.items():
        for metric in metrics:
            family = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            own = {"node": address} if len(nodes) > 1 else {}
            family.samples += [
                sample._replace(labels={**sample.labels, **own}) for sample in metric.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    def __init__(self, families: Iterable[Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _forget_dead(directory: Path) -> None:
    """A replica that was killed could not take back its gauges; its counters stay true."""
    for path in directory.glob("gauge_live*.db"):
        match = re.fullmatch(r"gauge_live[a-z]+_(\d+)\.db", path.name)
        if match and not _alive(int(match[1])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _is_retired(sample: Sample) -> bool:
    """The processes' files have no way to remove a series: a retired checkpoint is 0 there."""
    return sample.name == "samclip_model_info" and sample.value == 0
