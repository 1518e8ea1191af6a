"""Counting floating-point operations, and the machine's own."""

import torch

from tests.bench import machine


def test_products_and_convolutions_are_counted() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    assert machine.flops(lambda: a @ b) == 2 * 2 * 3 * 5
    layer, image = torch.nn.Conv2d(4, 6, 3, padding=1), torch.ones(1, 4, 8, 8)
    assert machine.flops(lambda: layer(image)) == 2 * 4 * 6 * 9 * 64


def test_calls_are_timed_at_least_three_times_after_one_more() -> None:
    calls: list[int] = []
    assert len(machine.timed(lambda: calls.append(1), seconds=0)) == 3
    assert len(calls) == 4


def test_the_facts_name_the_machine() -> None:
    facts = machine.facts()
    assert facts["cores"] >= 1
    assert facts["processor"]
