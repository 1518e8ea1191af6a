"""The simulation keeps the laws that any such machine keeps, and bears out the plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simpy

from services.plan import Choices, Load, plan
from tests.bench import simulation
from tests.bench.simulation import Processor
from tests.unit.test_plan import COSTS

OWN = 1 - COSTS.unasked_cores / COSTS.cores  # of the cores: what requests have of them


def ends(*works: tuple[float, int] | tuple[float, int, bool], cores: int = 2) -> list[float]:
    """When each work, begun at once, is done."""
    env = simpy.Environment()
    processor = Processor(env, cores)
    found: dict[int, float] = {}

    def one(index: int, work: tuple[Any, ...]) -> simulation.Steps:
        yield processor.work(*work)
        found[index] = env.now

    for index, work in enumerate(works):
        env.process(one(index, work))
    env.run()
    return [found[index] for index in range(len(works))]


def test_cores_are_shared_by_threads() -> None:
    assert ends((1, 1)) == [1]
    assert ends((2, 2)) == [1]
    assert ends((1, 1), (1, 1)) == [1, 1]
    # Three threads on two cores, each at two thirds, until the single one is done.
    assert ends((1, 1), (2, 2)) == pytest.approx([1.5, 1.5])
    assert ends((1, 1), (1, 1), (1, 1), (1, 1)) == pytest.approx([2, 2, 2, 2])


def test_what_works_in_step_is_as_slow_as_its_slowest_thread() -> None:
    assert ends((2, 2, True)) == [1]
    # Until the single one is done it has half of each core, and then both.
    assert ends((1, 1), (2, 2, True)) == pytest.approx([1.5, 1.75])
    assert ends((1, 1), (1, 1), (2, 2, True)) == pytest.approx([2, 2, 2])
    assert ends((2, 2, True), (2, 2, True)) == pytest.approx([2, 2])


def test_saturation_is_bounded_by_the_cores() -> None:
    costs = replace(COSTS, new_image_cpu_s=0.12)
    most = costs.cores / costs.new_image_cpu_s
    assert simulation.closed(costs, 32, 60) == pytest.approx(most, rel=0.1)
    assert simulation.closed(costs, 1, 60) < 0.9 * most
    clicks = COSTS.cores / COSTS.click_cpu_s
    assert simulation.closed(COSTS, 32, 60, "click") == pytest.approx(clicks, rel=0.1)


def test_one_client_waits_for_its_own_work_alone() -> None:
    alone = 1 / simulation.closed(COSTS, 1, 60)
    around = OWN * COSTS.new_image_cpu_s - COSTS.decode_s - OWN * 2 * COSTS.encode_of_8_s
    assert alone == pytest.approx(around + COSTS.decode_s + COSTS.encode_s, rel=0.02)
    click = 1 / simulation.closed(COSTS, 1, 60, "click")
    around = OWN * COSTS.click_cpu_s - COSTS.mask_on_one_core_s
    assert click == pytest.approx(around + COSTS.mask_s, rel=0.02)


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 16])
def test_each_image_of_a_batch_takes_what_was_measured_of_its_size(cores: int) -> None:
    costs = replace(COSTS, cores=cores, encode_s=0.06, encode_on_each_core_s=0.05)
    machine = simulation.Machine(simpy.Environment(), costs)
    times = [machine._batch_s(size) for size in (1, 2, 4, 8)]
    assert times[0] == costs.encode_s
    assert times[-1] == costs.encode_of_8_s
    assert times == sorted(times, reverse=True)
    if 1 < cores < 8:
        assert machine._batch_s(cores) == costs.encode_on_each_core_s


def test_littles_law() -> None:
    found = simulation.open_loop(COSTS, 10, 10, 200)
    assert len(found.new_s) == pytest.approx(2000, rel=0.1)
    assert len(found.click_s) == pytest.approx(2000, rel=0.1)
    assert found.processor.busy_s / 200 == pytest.approx(OWN * 10 * (0.1 + 0.03), rel=0.1)


@pytest.mark.parametrize(("new_per_s", "clicks_per_s"), [(12.0, 0.0), (40.0, 30.0), (3.0, 80.0)])
def test_a_plan_holds_and_one_machine_less_would_not(new_per_s: float, clicks_per_s: float) -> None:
    load = Load(images_per_s=new_per_s, clicks_per_s=clicks_per_s)
    found = plan(load, COSTS, Choices(utilisation=0.7))
    share = 1 / found.replicas
    kept = simulation.open_loop(COSTS, share * new_per_s, share * clicks_per_s, 300)
    asked = 300 * share * (new_per_s + clicks_per_s)
    assert len(kept.new_s) + len(kept.click_s) >= 0.9 * asked
    assert np.percentile(kept.new_s or kept.click_s, 99) < 2
    overload = COSTS.cores / found.busy_cores * 1.2  # of the load, more than a machine can do
    lost = simulation.open_loop(COSTS, overload * new_per_s, overload * clicks_per_s, 300)
    assert len(lost.new_s) + len(lost.click_s) < 0.9 * 300 * overload * (new_per_s + clicks_per_s)
