"""Work in threads is measured, takes turns, and ends when it is cancelled."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from samclip_core.errors import Unavailable
from samclip_core.io import image
from services.batching import threads
from services.observability import metrics
from tests.shown import shown
from tests.unit.services.batching.device import NOW

variable: ContextVar[str] = ContextVar("variable", default="")


@contextmanager
def opened(name: str = "one") -> Iterator[threads.Threads]:
    pool = threads.Threads(name, 1)
    try:
        yield pool
    finally:
        pool.close(wait=True)


async def test_work_runs_in_the_pool_with_the_callers_context_and_is_measured():
    variable.set("here")
    before = shown(metrics.STAGE_SECONDS.labels("hash"))
    with opened("pool") as pool:
        name, seen = await pool.run(
            NOW, "hash", lambda: (threading.current_thread().name, variable.get())
        )
    assert name.startswith("pool")
    assert seen == "here"
    assert shown(metrics.STAGE_SECONDS.labels("hash")) > before


async def test_only_large_files_are_hashed_in_a_thread():
    encoded = os.urandom(threads.SMALL_FILE + 1)
    with opened() as pool:
        assert await pool.image_key(NOW, encoded) == image.image_key(encoded)
    # The pool has shut down, and small files do not need it.
    assert await pool.image_key(NOW, encoded[1:]) == image.image_key(encoded[1:])
    with pytest.raises(Unavailable):
        await pool.image_key(NOW, encoded)


async def test_work_cancelled_before_its_start_never_starts():
    gate, started = threading.Event(), []
    with opened() as pool:
        busy = asyncio.create_task(pool.run(NOW, "hash", gate.wait, 30))
        await asyncio.sleep(0.01)
        queued = asyncio.create_task(pool.run(NOW, "hash", started.append, 1))
        await asyncio.sleep(0.01)
        queued.cancel()
        await asyncio.gather(queued, return_exceptions=True)
        gate.set()
        assert await busy
    assert started == []


async def test_long_work_lets_others_have_their_turn(monkeypatch):
    """With one thread, a short call overtakes a long one that was submitted before it."""
    monkeypatch.setattr(threads, "TURN_S", 0.0)
    order = []

    def slow():
        for number in range(100):
            order.append(number)
            yield number

    with opened() as pool:
        long = asyncio.create_task(pool.drain(NOW, "encode", slow()))
        await asyncio.sleep(0)
        await pool.run(NOW, "encode", order.append, "short")
        assert await long == list(range(100))
    assert order.index("short") < 50


async def test_work_in_turns_ends_when_it_is_cancelled(monkeypatch):
    monkeypatch.setattr(threads, "TURN_S", 0.0)
    gate, made = threading.Event(), []

    def slow():
        for number in range(100):
            made.append(number)
            assert gate.wait(30)
            yield number

    with opened() as pool:
        call = asyncio.create_task(pool.drain(NOW, "encode", slow()))
        while not made:
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        gate.set()
    assert made == [0]


async def test_work_that_waits_when_the_threads_end_is_refused_and_what_runs_is_finished():
    gate = threading.Event()
    with opened() as pool:
        running, waiting = (asyncio.create_task(pool.run(NOW, "hash", gate.wait)) for _ in "ab")
        await asyncio.sleep(0.01)
        pool.close()
        with pytest.raises(Unavailable):
            await waiting
        gate.set()
        assert await running


@pytest.mark.parametrize(
    "error", [StopIteration(), concurrent.futures.CancelledError(), SystemExit(), GeneratorExit()]
)
async def test_no_error_ends_the_event_loop_or_keeps_a_place(error):
    def fail():
        raise error

    with opened() as pool:
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match="the work raised"):
                await asyncio.create_task(pool.run(NOW, "hash", fail))
            assert await pool.run(NOW, "hash", int) == 0


async def test_errors_reach_the_caller():
    with opened() as pool:
        with pytest.raises(ZeroDivisionError):
            await pool.run(NOW, "hash", lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await pool.drain(NOW, "encode", (1 // number for number in (1, 0)))
