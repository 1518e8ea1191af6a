"""The figures that ``samclip plan`` reads: seconds per request and bytes per image."""

from collections.abc import Iterable
from typing import Any

from benchmarks import cpu, gpu, redis_entries
from benchmarks.lines import Line
from benchmarks.machine import CORES

AT_ONCE = "32 clients"


def of(lines: Iterable[Line]) -> dict[str, Any]:
    """Return figures by the names of ``services.planning.sizes.Costs``, if they were measured."""
    found = {line.name: line.median for line in lines}

    def per_request_s(row: str, column: str) -> float | None:
        ms = found.get((cpu.ACCOUNT, row, column))
        return None if ms is None else ms / 1000

    def in_redis(row: str, unit: float) -> float | None:
        value = found.get((redis_entries.TABLE, row, redis_entries.COLUMN))
        return None if value is None else value * unit

    bare_s, decoding_s = (per_request_s(row, cpu.BARE) for row in (cpu.WHOLE, cpu.DECODING))
    served = [found.get((gpu.TABLE, gpu.SERVED % number, gpu.RATE)) for number in gpu.CLIENTS]
    costs = {
        "cores": CORES if bare_s else None,
        "new_image_cpu_s": per_request_s(cpu.WHOLE, f"new images, {AT_ONCE}"),
        "known_image_cpu_s": per_request_s(cpu.WHOLE, f"known images, {AT_ONCE}"),
        "click_cpu_s": per_request_s(cpu.WHOLE, f"clicks, {AT_ONCE}"),
        "encode_cpu_s": bare_s - decoding_s if bare_s and decoding_s else None,
        "service_bytes": in_redis("memory after work (PSS)", 1e9),
        "image_bytes_in_redis": in_redis("an image", 1e3),
        "redis_bytes_per_s": in_redis("read by one client", 1e6),
        "gpu_images_per_s": max((rate for rate in served if rate), default=None),
    }
    return {name: value for name, value in costs.items() if value is not None}
