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


@pytest.mark.parametrize(("cores", "of_8"), [(1, 4), (2, 4), (4, 2), (5, 2), (8, 1), (16, 1)])
def test_each_image_on_a_core_takes_what_was_measured_of_so_many(cores: int, of_8: int) -> None:
    costs = replace(COSTS, cores=cores, encode_s=0.06, encode_on_each_core_s=0.05)
    machine = simulation.Machine(simpy.Environment(), costs)
    times = [machine._encode_s(size) / machine._free for size in range(1, 5)]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(0.06 if cores == 1 else 0.05)
    if of_8 > 1:
        assert times[of_8 - 1] == pytest.approx(costs.encode_of_8_s)


def batches(*arrivals: float) -> tuple[list[float], list[tuple[int, int]]]:
    """When each, 0.05 s in the making before it arrives, is done; sizes and threads of the parts.

    One takes 1 core-second on both cores, 1.2 on one; each of several that a core takes, 1.
    """
    env = simpy.Environment()
    device = simulation.Device(
        Processor(env, 2), 2, 8, 1.0, lambda n: 1.2 if n == 1 else 1.0, lambda n, free: n
    )
    found: dict[float, float] = {}
    parts: list[tuple[int, int]] = []
    on = device._on

    def watched(size: int, threads: int) -> simulation.Steps:
        parts.append((size, threads))
        return on(size, threads)

    device._on = watched  # type: ignore[method-assign]

    def one(at: float) -> simulation.Steps:
        yield env.timeout(at - 0.05)
        with device.announced():
            yield env.timeout(0.05)
        yield from device.through()
        found[at] = env.now

    for at in arrivals:
        env.process(one(at))
    env.run()
    return [found[at] for at in arrivals], parts


def test_one_alone_has_all_cores_and_what_waits_for_it_is_one_batch() -> None:
    assert batches(1) == ([1.5], [])
    ends, parts = batches(1, 1.1, 1.2)
    assert ends == pytest.approx([1.5, 3.5, 3.5])  # both on one core
    assert parts == [(2, 1)]


def test_a_batch_waits_for_what_is_being_prepared_but_not_for_long() -> None:
    assert batches(1, 1.01)[1] == [(2, 1)]
    ends, parts = batches(1, 1.04)
    assert ends == pytest.approx([1.5 + simulation.WAIT_S, 2.0 + simulation.WAIT_S])
    assert parts == []


def test_where_others_are_usual_each_takes_a_core() -> None:
    _, parts = batches(*(1 + 0.3 * number for number in range(20)))
    assert (1, 1) in parts
    assert sum(size for size, _ in parts) == 18  # all but the first and who waited for it


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
