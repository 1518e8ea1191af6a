"""Room for what a process holds: who gets it, and who has to leave."""

import asyncio

import pytest

from samclip_core.errors import Overloaded, RequestTooSlow
from services.request import transit
from services.request.transit import Place, Room


def test_requests_share_a_number_of_bytes() -> None:
    bodies = Room("bodies", 10)
    with bodies.place() as place:
        place.hold(6)
        with bodies.place() as other, pytest.raises(Overloaded, match="hold 6 bytes, at most 10"):
            other.hold(5)
        place.hold(4)
        place.become(3)
        assert bodies.bytes == 3
    assert (bodies.number, bodies.bytes) == (0, 0)


def test_one_key_leaves_half_of_the_bytes_to_others() -> None:
    bodies = Room("bodies", 10)
    with bodies.place("ann") as ann, bodies.place("ann") as more, bodies.place("bob") as bob:
        ann.hold(3)
        with pytest.raises(Overloaded, match="and 5 with one API key"):
            more.hold(3)
        more.hold(2)
        bob.hold(5)
    with bodies.place("ann") as ann:
        ann.hold(5)


def test_there_are_so_many_places() -> None:
    bodies = Room("bodies", 0, most=2)
    with bodies.place("ann"), bodies.place("bob"):
        assert bodies.number == 2
        with pytest.raises(Overloaded, match="2 bodies already"):
            bodies.place("bob").__enter__()
    assert bodies.number == 0


def test_small_ones_always_have_room() -> None:
    replies = Room("replies", 10, free=2)
    with replies.place() as large, replies.place() as small:
        large.hold(10)
        small.hold(2)
        with pytest.raises(Overloaded):
            small.hold(1)
    assert replies.bytes == 0


def test_a_place_is_given_back_once() -> None:
    replies = Room("replies", 10)
    with replies.place() as one, replies.place() as other:
        other.hold(5)
        one.hold(5)
        replies.leave(one)
        replies.leave(one)
        assert (replies.number, replies.bytes) == (1, 5)
    assert (replies.number, replies.bytes) == (0, 0)


def test_a_place_that_nobody_has_entered_counts_nothing() -> None:
    replies = Room("replies", 10)
    replies.place().hold(5)
    assert replies.bytes == 0


async def test_the_reply_that_waits_longest_for_its_reader_is_cut_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(transit, "monotonic", lambda: now[0])
    replies, cut = Room("replies", 10), list[str]()

    def sending(name: str) -> Place:
        place = replies.place().__enter__()
        place.hold(5)
        place.sending(lambda: cut.append(name))
        return place

    first, second = sending("first"), sending("second")
    now[0] += transit.GRACE_S + 1
    first.moved()
    with replies.place() as made:
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


async def test_no_reply_is_cut_for_one_that_gets_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(transit, "monotonic", lambda: now[0])
    replies = Room("replies", 10)
    with replies.place() as unread, replies.place() as read, replies.place() as large:
        for place in (unread, read):
            place.hold(4)
            place.sending(lambda: None)
        now[0] += transit.GRACE_S
        read.moved()
        with pytest.raises(Overloaded):
            large.hold(7)
        assert not unread.gone
        large.hold(6)
        assert (unread.gone, read.gone) == (True, False)


async def test_a_reply_whose_next_part_is_made_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(transit, "monotonic", lambda: now[0])
    replies = Room("replies", 10)
    with replies.place() as stream, replies.place() as other:
        stream.hold(8)
        stream.sending(lambda: None)
        stream.taken()
        assert replies.bytes == 0
        now[0] += 10 * transit.GRACE_S
        stream.hold(6)  # the next part is made
        with pytest.raises(Overloaded):
            other.hold(8)
        assert not stream.gone


async def test_a_key_that_needs_room_cuts_its_own_replies_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(transit, "monotonic", lambda: now[0])
    replies = Room("replies", 10)
    with replies.place("ann") as ann, replies.place("bob") as bob, replies.place("ann") as more:
        ann.hold(4)
        bob.hold(5)
        for place in (bob, ann):
            place.sending(lambda: None)
            now[0] += transit.GRACE_S
        more.hold(4)
        assert (ann.gone, bob.gone) == (True, False)


async def test_those_that_wait_get_room_in_their_order() -> None:
    files, order = Room("files", 10), list[str]()

    async def fetch(name: str, size: int, done: asyncio.Event) -> None:
        with files.place() as place:
            await place.wait(size)
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
    files = Room("files", 10)
    with files.place() as place, files.place() as hasty, files.place() as next_one:
        await place.wait(10)
        waiting = asyncio.create_task(hasty.wait(5))
        following = asyncio.create_task(next_one.wait(5))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        place.become(5)
        await following
    assert files.bytes == 0


async def test_more_than_the_room_is_refused_at_once() -> None:
    files = Room("files", 10)
    with files.place() as place, pytest.raises(Overloaded, match="at most 10"):
        await place.wait(11)
    with files.place("ann") as place, pytest.raises(Overloaded, match="5 with one API key"):
        await place.wait(6)
