"""Every metric of the service, with its name, labels and buckets.

All replicas of a node write to the directory in ``PROMETHEUS_MULTIPROC_DIR``, which the launcher
sets; ``services.gateway.scrape`` reads it.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from samclip.v1 import samclip_pb2 as pb

from services.observability import tracing

STAGES = (
    "parse",
    "hash",
    "decode",
    "preprocess",
    "cache_l1",
    "cache_l2",
    "queue",
    "batch_wait",
    "execute",
    "mask_decode",
    "encode",
    "render",
    "index",
)
SHED_REASONS = (
    "queue_full",
    "no_time",
    "busy",
    "expired",
    "deadline",
    "no_room",
    "unread",
    "abandoned",
    "cancelled",
)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Counter(
    "samclip_requests_total",
    "Requests answered, by gRPC code. Those of other protocols count once, under the protocol.",
    ["service", "rpc", "code"],
)
REQUEST_SECONDS = Histogram(
    "samclip_request_seconds", "Time in the replica.", ["service", "rpc"], buckets=_SECONDS
)
STAGE_SECONDS = Histogram(
    "samclip_stage_seconds", "Time in one stage of a request.", ["stage"], buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "samclip_batch_size",
    "Requests in one run of the image encoder or the mask decoder.",
    ["part"],
    buckets=(1, 2, 4, 8, 16, 32),
)
BATCH_RELEASE = Counter(
    "samclip_batch_release_total", "Why a batch was released.", ["part", "reason"]
)
CACHE = Counter(
    "samclip_cache_total",
    "Lookups of an embedding (hit, miss, corrupt, error), and its writes.",
    ["tier", "output", "outcome"],
)
CACHE_BYTES = Gauge(
    "samclip_cache_bytes", "Bytes of cached embeddings.", ["tier"], multiprocess_mode="livesum"
)
REDIS_UP = Gauge(
    "samclip_redis_up",
    "1 while Redis is used, 0 while a replica runs without it.",
    ["access"],
    multiprocess_mode="livemin",
)
REDIS_BYTES = Gauge(
    "samclip_redis_bytes",
    "Memory that Redis uses, and its limit: maxmemory, 0 without one.",
    ["kind"],
    multiprocess_mode="livemax",
)
SHED = Counter("samclip_shed_total", "Requests refused or dropped.", ["reason"])
QUEUE = Gauge("samclip_queue", "Items waiting for a batch.", ["part"], multiprocess_mode="livesum")
INFLIGHT = Gauge(
    "samclip_inflight", "Requests being answered.", ["service"], multiprocess_mode="livesum"
)
MODEL_INFO = Gauge(
    "samclip_model_info",
    "The checkpoint being served.",
    ["name", "digest", "kind"],
    multiprocess_mode="livemax",
)
ENGINE_INFO = Gauge(
    "samclip_engine_info",
    "The engine that runs each part of the checkpoint, and its precision.",
    ["part", "engine", "dtype"],
    multiprocess_mode="livemax",
)
MODEL_REQUESTS = Counter(
    "samclip_model_requests_total",
    "Requests by the name of the model that answers them.",
    ["application", "model"],
)
MODEL_LOADS = Counter(
    "samclip_model_loads_total",
    "Models that were loaded, that failed to load, and that were unloaded.",
    ["model", "outcome"],
)
MODEL_BYTES = Gauge(
    "samclip_model_bytes",
    "Memory that a loaded model took, in all processes.",
    ["model"],
    multiprocess_mode="livesum",
)
MODEL_QUALITY = Gauge(
    "samclip_model_quality",
    "Quality of the checkpoint, measured when it was made (from its lineage).",
    ["digest", "measure"],
    multiprocess_mode="livemax",
)
DEVICE_MEMORY = Gauge(
    "samclip_device_memory_bytes",
    "Memory of all models: reserved by torch on a GPU, or resident in their processes on a CPU.",
    multiprocess_mode="livesum",
)

# Prometheus sees no increase at the first event unless the series exists before it.
for _stage in STAGES:
    STAGE_SECONDS.labels(_stage)
for _reason in SHED_REASONS:
    SHED.labels(_reason)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time one stage, even if it fails, and open a span for it."""
    start = time.perf_counter()
    try:
        with tracing.span(name):
            yield
    finally:
        STAGE_SECONDS.labels(name).observe(time.perf_counter() - start)


def ready(applications: Mapping[str, bool]) -> Metric:
    """Return which applications answer with a warm model, as known at this scrape."""
    documentation = "1 if an application answers with a warm model, checked at each scrape."
    family = GaugeMetricFamily("samclip_ready", documentation, labels=["application"])
    for application, answers in applications.items():
        family.add_metric([application], answers)
    return family


def certificate(end_s: float) -> Metric:
    """Return when the front door's certificate ends, as Unix time."""
    documentation = "Unix time at which the certificate of the front door expires; only with TLS."
    return GaugeMetricFamily("samclip_certificate_expiry_timestamp_seconds", documentation, end_s)


def announce(model: pb.ModelInfo, quality: Mapping[str, float] = MappingProxyType({})) -> None:
    """Publish the checkpoint that this process serves, and its measured quality."""
    MODEL_INFO.labels(model.name, model.digest, model.kind).set(1)
    for measure, value in quality.items():
        MODEL_QUALITY.labels(model.digest, measure).set(value)


def announce_engine(part: str, engine: str, dtype: str) -> None:
    """Publish the engine and precision of a part, in place of the previous ones."""
    if previous := _engines.get(part):
        ENGINE_INFO.labels(part, *previous).set(0)
    ENGINE_INFO.labels(part, engine, dtype).set(1)
    _engines[part] = engine, dtype


_engines: dict[str, tuple[str, str]] = {}


def measure_memory(device: str) -> None:
    """Publish the memory that the models of this process use on their device."""
    DEVICE_MEMORY.set(used_bytes(device))


def used_bytes(device: str) -> int:
    """Return the memory that this process uses on a device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_reserved(device)
    if device.startswith("mps"):
        import torch

        return torch.mps.driver_allocated_memory()
    return resident_bytes()


def retire(model: pb.ModelInfo) -> None:
    """Publish that this process no longer serves the checkpoint."""
    MODEL_INFO.labels(model.name, model.digest, model.kind).set(0)


def resident_bytes() -> int:
    """Return the physical memory of this process, or its peak if there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
