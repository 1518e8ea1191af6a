"""The figures that ``samclip plan`` is given."""

import pytest

from services.plan import Costs, PlanError
from tests.bench import costs
from tests.bench.lines import Line
from tests.bench.report import Report
from tests.bench.throughput import name_of

MODEL = {
    "decode and resize": 4.0,
    "encode, one on each core": 50,
    "encode, batch of 8": 45.0,
    "decode a click, one thread": 25.0,
}


def a_report() -> Report:
    asked = {("classify", "new"): 100.0, ("classify", "key"): 2.0, ("click", "key"): 30.0}
    throughput = [Line("nobody asks", "cores", [0.2])]
    throughput += [
        Line(name_of("grpc", *what, 32), "/s", [1], facts={"cpu_ms": ms})
        for what, ms in asked.items()
    ]
    alone = {("classify", "new"): {"execute": 40.0}, ("click", "key"): {"mask_decode": 20.0}}
    throughput += [
        Line(name_of("grpc", *what, 1), "/s", [1], facts={"stages_ms": stages_ms})
        for what, stages_ms in alone.items()
    ]
    cache = [
        Line("an image in Redis", "kB", [1000]),
        Line("read from Redis, one connection", "MB/s", [900]),
    ]
    parts = {
        "model": [Line(name, "ms", [ms]) for name, ms in MODEL.items()],
        "throughput": throughput,
        "footprint": [Line("memory, after work (PSS)", "GB", [3])],
        "cache": cache,
    }
    return Report({}, parts, {"throughput": {"machine": {"cores": 2}}})


def test_all_that_a_plan_needs_is_there() -> None:
    found = Costs.of(costs.of(a_report()))
    assert found.cores == 2
    assert found.unasked_cores == pytest.approx(0.2)
    assert found.new_image_cpu_s == pytest.approx(0.1)
    assert found.click_cpu_s == pytest.approx(0.03)
    assert found.encode_s == pytest.approx(0.04)
    assert found.encode_on_each_core_s == pytest.approx(0.05)
    assert found.encode_of_8_s == pytest.approx(0.045)
    assert found.mask_s == pytest.approx(0.02)
    assert found.mask_on_one_core_s == pytest.approx(0.025)
    assert found.service_bytes == pytest.approx(3e9)
    assert found.image_bytes_in_redis == pytest.approx(1e6)
    assert found.gpu_images_per_s is None


def test_a_gpu_counts_as_it_serves() -> None:
    report = a_report()
    report.parts["gpu"] = [
        Line("gpu vit-b bfloat16, batch 8", "/s", [95]),
        Line("gpu vit-b served, 8 clients", "/s", [70]),
        Line("gpu vit-b served, 32 clients", "/s", [90]),
    ]
    assert costs.of(report)["gpu_images_per_s"] == 90


def test_what_was_not_measured_is_asked_for() -> None:
    report = a_report()
    del report.parts["throughput"]
    with pytest.raises(PlanError, match="click_cpu_s, cores"):
        Costs.of(costs.of(report))
