"""The order of drawing: each photograph once per epoch, from the step and the slot alone."""

from collections import Counter

import numpy as np
import pytest

from training.data import order
from training.data.order import Held, Order, Walk

IMAGES = 8  # slots of a step
KEY = (3, 1)
HELD = Held(10)
SETS = [range(300), range(103)]  # only their lengths count


def drawn(made: Order, steps: range) -> list[tuple[int, int]]:
    return [made.draw(step, slot) for step in steps for slot in range(IMAGES)]


@pytest.mark.parametrize("length", [1, 4, 8])
@pytest.mark.parametrize("total", [3, 9, 103, 304])
@pytest.mark.parametrize("out", [False, True])
def test_an_epoch_holds_each_photograph_once(total: int, out: bool, length: int):
    last = np.arange(total) % 10 == 9
    used = np.flatnonzero(last == out) if total >= 10 else range(total)  # small sets hold none out
    walk = Walk(total, Held(10, out), length, KEY)
    epochs = [[walk.at(e * len(used) + i) for i in range(len(used))] for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys(map(int, used), 1)
    if len(used) > 8 * length:
        assert epochs[0] != epochs[1]
        assert epochs[0] != sorted(epochs[0])


def test_runs_are_neighbours_in_every_epoch():
    walk = Walk(1003, Held(10**6), 8, KEY)
    for position in range(0, 3 * 1003, 8):
        run = [walk.at(position + i) for i in range(8)]
        seam = 1003 - position % 1003 < 8  # the end of an epoch and the begin of the next one
        assert seam or run == [*range(run[0], run[0] + 8)]


@pytest.mark.parametrize(
    ("images", "length", "runs"),
    [(2048, 8, 256), (1024, 4, 256), (4096, 8, 512), (32, 1, 32), (3, 1, 3), (2047, 1, 2047)],
)
def test_a_step_takes_many_runs_and_a_worker_whole_ones(images: int, length: int, runs: int):
    made = Order([range(100_000)], [1.0], images, KEY, Held(10**6))
    assert (made.length, made.runs) == (length, runs)
    for count in (1, 2, 8, 64):
        own = [made.draw(5, slot)[1] // length for slot in range(count - 1, images, count)]
        if runs % count == 0:
            assert set(Counter(own).values()) == {length}


def test_a_draw_depends_on_the_step_and_the_slot_alone(monkeypatch: pytest.MonkeyPatch):
    """Reading on, resuming anywhere and drawing in any order give the same photographs."""
    monkeypatch.setattr(order, "RUNS", 2)
    inputs = SETS, [1.0, 2.5], IMAGES, KEY, HELD
    expected = drawn(Order(*inputs), range(90))
    for first in (1, 37, 89):
        assert drawn(Order(*inputs), range(first, 90)) == expected[first * IMAGES :]
    backwards = Order(*inputs)
    found = [backwards.draw(step, slot) for step in range(90)[::-1] for slot in range(IMAGES)[::-1]]
    assert found[::-1] == expected
    assert drawn(Order(*inputs[:3], (3, 2), HELD), range(90)) != expected


def test_sets_are_mixed_by_size_and_weight():
    weights = [1.0, 0.1, 2.0]
    made = Order([*SETS, SETS[1]], weights, IMAGES, KEY, HELD)
    share = np.array(weights) * [300, 103, 103]
    share /= share.sum()
    sources = np.array([source for source, _ in drawn(made, range(100))])
    for number in range(3):
        counts = np.cumsum(sources == number)
        assert np.abs(counts - share[number] * np.arange(1, 801)).max() < 3


def test_a_set_of_weight_zero_is_never_drawn():
    for weights, expected in (([1.0, 0.0], {0}), ([0.0, 1.0], {1})):
        made = Order(SETS, weights, IMAGES, KEY, HELD)
        assert {source for source, _ in drawn(made, range(30))} == expected


def test_another_photograph_comes_from_anywhere_but_those_held_out():
    made = Order(SETS, [1.0, 1.0], IMAGES, KEY, HELD)
    others = [made.other(order.seeded(n)) for n in range(200)]
    assert {source for source, _ in others} == {0, 1}
    assert len(set(others)) > 100
    assert all(index % 10 != 9 for _, index in others)
