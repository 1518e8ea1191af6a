"""The size of a deployment for a load, from the measurements of ``make bench``.

Sizes are computed from the core-seconds that each kind of request costs all processes of the
service at saturation. Each machine equals the measured one and runs a complete service.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil, inf
from pathlib import Path
from typing import Any, Self

GB = 1e9
HOURS_A_MONTH = 730
LIFETIME_HOURS = 24.0
"""How long the service keeps an embedding of SAM's, nearly all of an image's bytes, in Redis."""
MACHINES = Path(__file__).with_name("machines.json")


class PlanError(ValueError):
    """The load is invalid, or a measurement is missing."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs per request as measured by ``make bench``.

    ``…_cpu_s`` are core-seconds of all processes per request at saturation; ``encode_cpu_s`` is
    the encoder's share of ``new_image_cpu_s``.
    """

    cores: int
    new_image_cpu_s: float
    known_image_cpu_s: float
    click_cpu_s: float
    encode_cpu_s: float
    service_bytes: float
    image_bytes_in_redis: float
    redis_bytes_per_s: float  # one shard, read
    gpu_images_per_s: float | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the costs from the benchmark's JSON. Raises PlanError if that fails."""
        try:
            return cls.of(json.loads(path.read_text())["costs"])
        except (OSError, ValueError, KeyError) as error:
            raise PlanError(f"{path} has no costs ({error}): run `make bench`") from error

    @classmethod
    def reference(cls, machine: str) -> Self:
        """Return the costs of one of the ``machines``."""
        return cls.of(machines()[machine])

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make costs from the benchmark's values. Raises PlanError if one is missing."""
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - {"gpu_images_per_s"} - set(values)):
            raise PlanError(f"not measured yet: {', '.join(missing)}; run `make bench`")
        return cls(**{name: values[name] for name in names & set(values)})


def machines() -> dict[str, dict[str, Any]]:
    """Return the reference machines: the values of ``Costs``, and a text ``about`` each."""
    found: dict[str, dict[str, Any]] = json.loads(MACHINES.read_text())
    return found


@dataclass(frozen=True, kw_only=True)
class Load:
    """Request rates of a service.

    ``hit_ratio`` is the fraction of images in the cache, whose files are not sent again.
    ``keep_hours``: the least time for which Redis holds an image; None: as long as it has room.
    """

    images_per_s: float
    clicks_per_s: float = 0.0
    hit_ratio: float = 0.0
    image_bytes: float = 250_000
    keep_hours: float | None = None

    @property
    def new_per_s(self) -> float:
        """Images per second that have to be encoded."""
        return self.images_per_s * (1 - self.hit_ratio)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The operator's choices: target utilisation, sizes of Redis and its shards, prices in USD."""

    utilisation: float = 0.7
    redis_gb: float = 25.0  # above it, Redis evicts the images that were used least recently
    shard_gb: float = 25.0
    core_hour: float = 0.04
    gb_hour: float = 0.005
    gpu_hour: float = 2.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    busy_cores: float  # on average
    replicas: int
    cores: int
    gpus: int
    memory_gb: float  # of the services
    redis_gb: float
    redis_shards: int
    hours_in_redis: float  # of an image that nobody asks for again
    from_clients_mbit_s: float
    redis_mbit_s: float
    usd_of_cores: float
    usd_of_gpus: float
    usd_of_memory: float
    usd_of_redis: float
    usd_a_month: float


def plan(load: Load, costs: Costs, choices: Choices = Choices(), on_gpu: bool = False) -> Plan:
    """Return the smallest deployment that stays below ``utilisation``. Raises PlanError."""
    _check(load, choices)
    gpus = _gpus(load, costs, choices) if on_gpu else 0
    busy = busy_cores(load, costs, on_gpu)
    replicas = max(1, gpus, ceil(busy / costs.cores / choices.utilisation))
    gb_per_hour = load.new_per_s * 3600 * costs.image_bytes_in_redis / GB
    redis_gb = min(gb_per_hour * LIFETIME_HOURS, choices.redis_gb)
    if load.keep_hours is not None:
        redis_gb = gb_per_hour * min(load.keep_hours, LIFETIME_HOURS)
    # Worst case: every click reads its image from Redis.
    redis_rate = (load.new_per_s + load.clicks_per_s) * costs.image_bytes_in_redis
    full = redis_rate / costs.redis_bytes_per_s / choices.utilisation
    shards = max(ceil(redis_gb / choices.shard_gb), ceil(full))
    memory_gb = replicas * costs.service_bytes / GB
    cores = replicas * costs.cores
    usd = {
        "usd_of_cores": cores * choices.core_hour * HOURS_A_MONTH,
        "usd_of_gpus": gpus * choices.gpu_hour * HOURS_A_MONTH,
        "usd_of_memory": memory_gb * choices.gb_hour * HOURS_A_MONTH,
        "usd_of_redis": redis_gb * choices.gb_hour * HOURS_A_MONTH,
    }
    return Plan(
        busy_cores=busy,
        replicas=replicas,
        cores=cores,
        gpus=gpus,
        memory_gb=memory_gb,
        redis_gb=redis_gb,
        redis_shards=shards,
        hours_in_redis=redis_gb / gb_per_hour if gb_per_hour else LIFETIME_HOURS,
        from_clients_mbit_s=load.new_per_s * load.image_bytes * 8 / 1e6,
        redis_mbit_s=redis_rate * 8 / 1e6,
        **usd,
        usd_a_month=sum(usd.values()),
    )


def _check(load: Load, choices: Choices) -> None:
    """Raise PlanError if a value is out of range."""
    for name, value in (vars(load) | vars(choices)).items():
        if value is not None and not 0 <= value < inf:
            raise PlanError(f"{name} is {value}: a number, which must not be negative, is expected")
    if not load.images_per_s and not load.clicks_per_s:
        raise PlanError("the load is zero: give images or clicks per second")
    if load.hit_ratio > 1:
        raise PlanError(f"the hit ratio is {load.hit_ratio}, expected 0 to 1")
    if not 0 < choices.utilisation <= 1:
        raise PlanError(f"the utilisation is {choices.utilisation}, expected 0 to 1")
    if min(choices.redis_gb, choices.shard_gb) <= 0:
        raise PlanError("Redis and its shards need more than 0 GB")


def busy_cores(load: Load, costs: Costs, on_gpu: bool = False) -> float:
    """Return the core-seconds per second; a GPU only runs the encoder."""
    new = costs.new_image_cpu_s
    if on_gpu:
        new = max(new - costs.encode_cpu_s, 0.0)
    known = load.images_per_s * load.hit_ratio * costs.known_image_cpu_s
    return load.new_per_s * new + known + load.clicks_per_s * costs.click_cpu_s


def _gpus(load: Load, costs: Costs, choices: Choices) -> int:
    if costs.gpu_images_per_s is None:
        raise PlanError("no GPU was measured: run `make bench` on a machine that has one")
    return max(1, ceil(load.new_per_s / costs.gpu_images_per_s / choices.utilisation))
