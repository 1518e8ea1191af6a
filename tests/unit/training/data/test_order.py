"""The order of drawing: each photograph once per epoch, from the step and the slot alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.photographs import write_shard
from training.data import order
from training.data.order import Order, part_starts
from training.data.sources import Source, open_source

IMAGES = 8  # slots of a step
KEY = (3, 1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of a few photographs, so that small sets have many windows and lanes."""
    for name, value in {"PART": 8192, "FILES": 4, "WINDOWS": 16, "HELD_OUT": 10}.items():
        monkeypatch.setattr(order, name, value)


@pytest.fixture
def shards(tmp_path: Path) -> Source:
    """Four shards of 75 photographs of different sizes: 78 parts."""
    for shard in range(4):
        write_shard(
            tmp_path / f"shards/train-{shard}.tar",
            {
                f"{shard}{n:02}": {"jpg": bytes(300 + 31 * n % 700), "json": b"{}"}
                for n in range(75)
            },
        )
    return open_source(str(tmp_path / "shards"))


@pytest.fixture
def plain(tmp_path: Path) -> Source:
    (tmp_path / "plain").mkdir()
    for n in range(103):
        (tmp_path / f"plain/{n:03}.jpg").write_bytes(b"photograph")
    return open_source(str(tmp_path / "plain"))


def drawn(made: Order, steps: range) -> list[tuple[int, int]]:
    turns = [made.draw(step, slot) for step in steps for slot in range(IMAGES)]
    return [(turn.source, turn.sample()) for turn in turns]


@pytest.mark.parametrize("kind", ["shards", "plain"])
@pytest.mark.parametrize("held_out", [False, True])
def test_an_epoch_holds_each_photograph_once(
    kind: str, held_out: bool, request: pytest.FixtureRequest
):
    source = request.getfixturevalue(kind)
    (walk,) = Order([source], [1.0], IMAGES, KEY, held_out).walks
    last = np.arange(len(source)) % 10 == 9
    expected = set(np.flatnonzero(last if held_out else ~last).tolist())
    orders = []
    for epoch in range(2):
        seen: Counter[int] = Counter()
        order_of_lane = []
        for lane in range(walk.lanes):
            length = int(walk.size_P[walk.parts[lane]].sum())
            for position in range(epoch * length, (epoch + 1) * length):
                window = walk.window(lane, position)
                order_of_lane.append(int(window.samples[position - window.start]))
        seen.update(order_of_lane)
        assert seen == dict.fromkeys(expected, 1)
        orders.append(order_of_lane)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_lanes_share_the_photographs_of_a_small_set(plain: Source):
    """A set with fewer lanes than a step gives all lanes together each photograph once, too."""
    made = Order([plain], [1.0], IMAGES, KEY)
    assert (made.lanes, made.walks[0].lanes) == (8, 2)
    lengths = [int(made.walks[0].size_P[parts].sum()) for parts in made.walks[0].parts]
    steps = range(min(lengths) * 2 // IMAGES)
    assert set(Counter(drawn(made, steps)).values()) == {1}


def test_lanes_are_equally_long_where_parts_are_not(tmp_path: Path):
    """Shards a little longer than a part end in a short one."""
    for shard in range(80):
        sizes = [1200] * 6 + [100 * (1 + shard % 3)] * (shard % 5)
        photographs = {f"{shard}-{n}": {"jpg": bytes(size)} for n, size in enumerate(sizes)}
        write_shard(tmp_path / f"set/train-{shard:02}.tar", photographs)
    walk = Order([open_source(str(tmp_path / "set"))], [1.0], IMAGES, KEY).walks[0]
    lengths = [int(walk.size_P[parts].sum()) for parts in walk.parts]
    assert len(set(walk.size_P)) > 3
    assert len(lengths) == IMAGES
    assert max(lengths) - min(lengths) <= 1


def test_a_draw_depends_on_the_step_and_the_slot_alone(shards: Source, plain: Source):
    """Reading on, resuming anywhere and drawing in any order give the same photographs."""
    inputs = [shards, plain], [1.0, 2.5], IMAGES, KEY
    expected = drawn(Order(*inputs), range(60))
    for first in (1, 37, 59):
        assert drawn(Order(*inputs), range(first, 60)) == expected[first * IMAGES :]
    backwards = Order(*inputs)
    found = [
        backwards.draw(step, slot) for step in range(59, -1, -1) for slot in range(IMAGES)[::-1]
    ]
    assert [(turn.source, turn.sample()) for turn in found[::-1]] == expected
    assert drawn(Order(*inputs[:3], (3, 2)), range(60)) != expected


def test_sets_are_mixed_by_size_and_weight_in_every_lane(shards: Source, plain: Source):
    weights = [1.0, 0.1, 2.0]
    made = Order([shards, plain, plain], weights, IMAGES, KEY)
    sizes = np.array(weights) * [300, 103, 103]
    share = sizes / sizes.sum()
    assert made.share == pytest.approx(share)
    for lane in range(IMAGES):
        sources = [made.draw(step, lane).source for step in range(200)]
        for number in range(3):
            counts = np.cumsum(np.array(sources) == number)
            assert np.abs(counts - share[number] * np.arange(1, 201)).max() < 2
    firsts = {tuple(made.draw(step, lane).source for step in range(8)) for lane in range(IMAGES)}
    assert len(firsts) > 1  # the lanes do not draw from the same set at the same time


def test_a_set_of_weight_zero_is_never_drawn(shards: Source, plain: Source):
    for weights, expected in (([1.0, 0.0], {0}), ([0.0, 1.0], {1})):
        made = Order([shards, plain], weights, IMAGES, KEY)
        assert {source for source, _ in drawn(made, range(30))} == expected


@pytest.mark.parametrize("count", [2, 4, 8])
def test_no_two_workers_read_the_same_parts(shards: Source, count: int):
    made = Order([shards], [1.0], IMAGES, KEY)
    assert made.walks[0].lanes == 8
    starts = part_starts(shards)
    parts = [
        {
            int(np.searchsorted(starts, made.draw(step, slot).sample(), side="right"))
            for step in range(30)
            for slot in range(rank, IMAGES, count)
        }
        for rank in range(count)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_another_photograph_comes_from_the_windows_of_the_lane(shards: Source, plain: Source):
    made = Order([shards, plain], [1.0, 1.0], IMAGES, KEY)
    windows = {(turn.source, turn.window.start) for turn in made.turns(40, 3)}
    others = [made.other(40, 3, order.seeded(n)) for n in range(100)]
    assert {(turn.source, turn.window.start) for turn in others} == windows
    assert {turn.source for turn in others} == {0, 1}
    assert len({(turn.source, turn.sample()) for turn in others}) > 10
