"""The cost figures that ``samclip plan`` uses."""

import pytest

from benchmarks import costs, cpu, gpu, redis_entries
from benchmarks.lines import Line
from services.planning.sizes import Costs, PlanError


def the_lines() -> list[Line]:
    columns = {"new images": 100.0, "known images": 2.0, "clicks": 30.0}
    account = [
        Line(cpu.ACCOUNT, cpu.WHOLE, f"{what}, 32 clients", "ms", [ms])
        for what, ms in columns.items()
    ]
    bare = {cpu.WHOLE: 80.0, cpu.DECODING: 4.0}
    account += [Line(cpu.ACCOUNT, row, cpu.BARE, "ms", [ms]) for row, ms in bare.items()]
    redis = {"memory after work (PSS)": 3, "an image": 1000, "read by one client": 900}
    column = redis_entries.COLUMN
    return account + [Line(redis_entries.TABLE, row, column, "", [n]) for row, n in redis.items()]


def test_all_that_a_plan_needs_is_there() -> None:
    found = Costs.of(costs.of(the_lines()))
    assert found.cores >= 1
    assert found.new_image_cpu_s == pytest.approx(0.1)
    assert found.known_image_cpu_s == pytest.approx(0.002)
    assert found.click_cpu_s == pytest.approx(0.03)
    assert found.encode_cpu_s == pytest.approx(0.076)
    assert found.service_bytes == pytest.approx(3e9)
    assert found.image_bytes_in_redis == pytest.approx(1e6)
    assert found.redis_bytes_per_s == pytest.approx(9e8)
    assert found.gpu_images_per_s is None


def test_a_gpu_counts_as_it_serves() -> None:
    rates = {"ours bfloat16, batches of 8": 95.0, gpu.SERVED % 8: 70.0, gpu.SERVED % 32: 90.0}
    served = [Line(gpu.TABLE, row, gpu.RATE, "/s", [rate]) for row, rate in rates.items()]
    assert costs.of(served) == {"gpu_images_per_s": 90}


def test_what_was_not_measured_is_asked_for() -> None:
    account = [line for line in the_lines() if line.table != cpu.ACCOUNT]
    with pytest.raises(PlanError, match="click_cpu_s, cores"):
        Costs.of(costs.of(account))
