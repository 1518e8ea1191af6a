"""Budget for what a process holds: who gets it, and who has to leave."""

import asyncio

import pytest

from samclip_core.errors import Overloaded, RequestTooSlow
from services.request import transit
from services.request.transit import Budget, Reserved
from tests.unit.services.batching.device import NOW


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a clock: a list of the time that it shows."""
    clock = [100.0]
    monkeypatch.setattr(transit, "monotonic", lambda: clock[0])
    return clock


def test_requests_share_a_number_of_bytes() -> None:
    bodies = Budget("bodies", 10)
    with bodies.reserve() as reserved:
        reserved.hold(6)
        with bodies.reserve() as other, pytest.raises(Overloaded, match="hold 6 bytes, at most 10"):
            other.hold(5)
        reserved.hold(4)
        reserved.set(3)
        assert bodies.bytes == 3
    assert (bodies.number, bodies.bytes) == (0, 0)


def test_one_key_leaves_half_of_the_bytes_to_others() -> None:
    bodies = Budget("bodies", 10)
    with bodies.reserve("ann") as ann, bodies.reserve("ann") as more, bodies.reserve("bob") as bob:
        ann.hold(3)
        with pytest.raises(Overloaded, match="and 5 with one API key"):
            more.hold(3)
        more.hold(2)
        bob.hold(5)
    with bodies.reserve("ann") as ann:
        ann.hold(5)


def test_there_are_so_many_places() -> None:
    bodies = Budget("bodies", 0, most=2)
    with bodies.reserve("ann"), bodies.reserve("bob"):
        assert bodies.number == 2
        with pytest.raises(Overloaded, match="2 bodies already"):
            bodies.reserve("bob").__enter__()
    assert bodies.number == 0


def test_small_ones_always_have_room() -> None:
    replies = Budget("replies", 10, free=2)
    with replies.reserve() as large, replies.reserve() as small:
        large.hold(10)
        small.hold(2)
        with pytest.raises(Overloaded):
            small.hold(1)
    assert replies.bytes == 0


def test_a_place_is_given_back_once() -> None:
    replies = Budget("replies", 10)
    with replies.reserve() as one, replies.reserve() as other:
        other.hold(5)
        one.hold(5)
        replies.leave(one)
        replies.leave(one)
        assert (replies.number, replies.bytes) == (1, 5)
    assert (replies.number, replies.bytes) == (0, 0)


def test_a_place_that_nobody_has_entered_counts_nothing() -> None:
    replies = Budget("replies", 10)
    replies.reserve().hold(5)
    assert replies.bytes == 0


async def test_the_reply_that_waits_longest_for_its_reader_is_cut_for_others(
    now: list[float],
) -> None:
    replies, cut = Budget("replies", 10), list[str]()

    def sending(name: str) -> Reserved:
        reserved = replies.reserve().__enter__()
        reserved.hold(5)
        reserved.begin_sending(lambda: cut.append(name))
        return reserved

    first, second = sending("first"), sending("second")
    now[0] += transit.GRACE_S + 1
    first.note_progress()
    with replies.reserve() as made:
        made.hold(5)
        with pytest.raises(Overloaded):  # first is being read, and made is not sent yet
            made.hold(1)
        await asyncio.sleep(0)
        assert cut == ["second"]
        with pytest.raises(RequestTooSlow, match="was not read"):
            second.hold(0)
    replies.leave(second)
    replies.leave(first)
    assert (replies.number, replies.bytes) == (0, 0)


async def test_no_reply_is_cut_for_one_that_gets_no_room(now: list[float]) -> None:
    replies = Budget("replies", 10)
    with replies.reserve() as unread, replies.reserve() as read, replies.reserve() as large:
        for reserved in (unread, read):
            reserved.hold(4)
            reserved.begin_sending(lambda: None)
        now[0] += transit.GRACE_S
        read.note_progress()
        with pytest.raises(Overloaded):
            large.hold(7)
        assert not unread.cut_off
        large.hold(6)
        assert (unread.cut_off, read.cut_off) == (True, False)


async def test_a_reply_whose_next_part_is_made_is_not_cut(now: list[float]) -> None:
    replies = Budget("replies", 10)
    with replies.reserve() as stream, replies.reserve() as other:
        stream.hold(8)
        stream.begin_sending(lambda: None)
        stream.end_sending()
        assert replies.bytes == 0
        now[0] += 10 * transit.GRACE_S
        stream.hold(6)  # the next part is made
        with pytest.raises(Overloaded):
            other.hold(8)
        assert not stream.cut_off


async def test_a_key_that_needs_room_cuts_its_own_replies_alone(now: list[float]) -> None:
    replies = Budget("replies", 10)
    with (
        replies.reserve("ann") as ann,
        replies.reserve("bob") as bob,
        replies.reserve("ann") as more,
    ):
        ann.hold(4)
        bob.hold(5)
        for reserved in (bob, ann):
            reserved.begin_sending(lambda: None)
            now[0] += transit.GRACE_S
        more.hold(4)
        assert (ann.cut_off, bob.cut_off) == (True, False)


async def test_those_that_wait_get_room_in_their_order() -> None:
    files, order = Budget("files", 10), list[str]()

    async def fetch(name: str, size: int, done: asyncio.Event) -> None:
        with files.reserve() as reserved:
            await reserved.wait(size, NOW)
            order.append(name)
            await done.wait()

    ends = [asyncio.Event() for _ in range(3)]
    sizes = (("large", 8), ("larger", 9), ("small", 1))
    tasks = [
        asyncio.create_task(fetch(name, size, end))
        for (name, size), end in zip(sizes, ends, strict=True)
    ]
    await asyncio.sleep(0.01)
    assert order == ["large"]  # the small one does not overtake, or it could go on for ever
    ends[0].set()
    await asyncio.sleep(0.01)
    assert order == ["large", "larger", "small"]
    for end in ends:
        end.set()
    await asyncio.gather(*tasks)
    assert (files.number, files.bytes) == (0, 0)


async def test_one_that_gives_up_waiting_lets_the_next_go_on() -> None:
    files = Budget("files", 10)
    with files.reserve() as reserved, files.reserve() as hasty, files.reserve() as next_one:
        await reserved.wait(10, NOW)
        waiting = asyncio.create_task(hasty.wait(5, NOW))
        following = asyncio.create_task(next_one.wait(5, NOW))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        reserved.set(5)
        await following
    assert files.bytes == 0


async def test_more_than_the_room_is_refused_at_once() -> None:
    files = Budget("files", 10)
    with files.reserve() as reserved, pytest.raises(Overloaded, match="at most 10"):
        await reserved.wait(11, NOW)
    with files.reserve("ann") as reserved, pytest.raises(Overloaded, match="5 with one API key"):
        await reserved.wait(6, NOW)
