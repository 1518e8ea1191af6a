"""Metrics of all replicas, on one node or across a cluster, in Prometheus' text format."""

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest, multiprocess
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 5.0
"""Timeout per node, below Prometheus' default scrape timeout of ten seconds."""

logger = logging.getLogger(__name__)


def of_node() -> list[Metric]:
    """Return the aggregated metrics of this node's replicas, without other libraries' metrics.

    Reads the directory ``PROMETHEUS_MULTIPROC_DIR``; if that is not set, this process's metrics.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    registry = REGISTRY
    if directory:
        _forget_dead(Path(directory))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=directory)
    metrics = [metric for metric in registry.collect() if metric.name.startswith("samclip_")]
    for metric in metrics:
        if metric.name == "samclip_model_info":  # 0: retired; files cannot drop a series
            metric.samples = [sample for sample in metric.samples if sample.value]
    return metrics


async def of_cluster() -> dict[str, list[Metric]]:
    """Return each node's metrics by its address, without nodes that do not answer in time."""
    alive = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    answers = await asyncio.gather(*(_ask(node["NodeID"]) for node in alive))
    return {
        node["NodeManagerAddress"]: metrics
        for node, metrics in zip(alive, answers, strict=True)
        if metrics is not None
    }


async def _ask(node: str) -> list[Metric] | None:
    if node == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(of_node)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    # The task's process imports only this module. With our metrics imported, it would add files of
    # its own to the node's directory.
    answer = ray.remote(of_node).options(num_cpus=0, scheduling_strategy=there).remote()
    try:
        async with asyncio.timeout(ANSWER_S):
            metrics: list[Metric] = await answer
            return metrics
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("node %s does not report its metrics: %r", node, error)
        ray.cancel(answer)
        return None


def render(nodes: Mapping[str, Sequence[Metric]], *shared: Metric) -> bytes:
    """Return Prometheus' text; with several nodes, samples not ``shared`` get the label node."""
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
    collector: Any = SimpleNamespace(collect=families.values)
    return generate_latest(collector)


def _forget_dead(directory: Path) -> None:
    """Delete the live gauges of killed replicas; their counters remain valid."""
    for path in directory.glob("gauge_live*.db"):
        match = re.fullmatch(r"gauge_live[a-z]+_(\d+)\.db", path.name)
        if match and not _runs(int(match[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it belongs to another user
    return True
