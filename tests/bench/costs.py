"""What ``samclip plan`` needs of the results: seconds and bytes of each thing asked."""

from typing import Any

from tests.bench.lines import Line
from tests.bench.report import Report

SATURATED, ALONE = "32 clients", "1 client"


def of(report: Report) -> dict[str, Any]:
    """By the names of ``services.plan.Costs``; what was not measured is absent."""
    found = {(part, line.name): line for part, lines in report.parts.items() for line in lines}

    def cpu_s(kind: str) -> float | None:
        line = found.get(("throughput", f"grpc {kind}, {SATURATED}"))
        return line.facts["cpu_ms"] / 1000 if line else None

    def stage_s(kind: str, stage: str) -> float | None:
        """What comes alone takes longer in a service than in a loop: other processes interrupt."""
        line = found.get(("throughput", f"grpc {kind}, {ALONE}"))
        return line.facts["stages_ms"][stage] / 1000 if line else None

    def median(part: str, name: str, unit: float) -> float | None:
        line = found.get((part, name))
        return line.median * unit if line else None

    costs = {
        "cores": report.facts["throughput"]["machine"]["cores"] if cpu_s("click key") else None,
        "unasked_cores": median("throughput", "nobody asks", 1),
        "new_image_cpu_s": cpu_s("classify new"),
        "known_image_cpu_s": cpu_s("classify key"),
        "click_cpu_s": cpu_s("click key"),
        "decode_s": median("model", "decode and resize", 0.001),
        "encode_s": stage_s("classify new", "execute"),
        "encode_on_each_core_s": median("model", "encode, one on each core", 0.001),
        "encode_of_8_s": median("model", "encode, batch of 8", 0.001),
        "mask_s": stage_s("click key", "mask_decode"),
        "mask_on_one_core_s": median("model", "decode a click, one thread", 0.001),
        "service_bytes": median("footprint", "memory, after work (PSS)", 1e9),
        "image_bytes_in_redis": median("cache", "an image in Redis", 1000),
        "redis_bytes_per_s": median("cache", "read from Redis, one connection", 1e6),
        "gpu_images_per_s": _best_gpu(report.parts.get("gpu", [])),
    }
    return {name: value for name, value in costs.items() if value is not None}


def _best_gpu(lines: list[Line]) -> float | None:
    rates = [line.median for line in lines if line.name.startswith("gpu vit-b served")]
    return max(rates, default=None)
