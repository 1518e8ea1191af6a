import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from samclip_core import image
from services import metrics, threads

variable: ContextVar[str] = ContextVar("variable", default="")


async def test_it_runs_elsewhere_with_the_callers_context_and_is_measured():
    variable.set("here")
    before = metrics.STAGE_SECONDS.labels("hash")._sum.get()
    with ThreadPoolExecutor(1, "pool") as pool:
        name, seen = await threads.run(
            pool, "hash", lambda: (threading.current_thread().name, variable.get())
        )
    assert name.startswith("pool")
    assert seen == "here"
    assert metrics.STAGE_SECONDS.labels("hash")._sum.get() > before


async def test_only_large_files_are_hashed_in_a_thread():
    encoded = os.urandom(threads.SMALL_FILE + 1)
    with ThreadPoolExecutor(1) as pool:
        assert await threads.image_key(pool, encoded) == image.image_key(encoded)
    # The pool has ended: this needs none.
    assert await threads.image_key(pool, encoded[1:]) == image.image_key(encoded[1:])
    with pytest.raises(RuntimeError):
        await threads.image_key(pool, encoded)


async def test_errors_come_back():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        await threads.run(pool, "hash", lambda: 1 // 0)


async def test_what_was_cancelled_in_the_queue_never_starts():
    gate, started = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        busy = asyncio.create_task(threads.run(pool, "hash", gate.wait, 30))
        await asyncio.sleep(0.01)
        queued = asyncio.create_task(threads.run(pool, "hash", started.append, 1))
        await asyncio.sleep(0.01)
        queued.cancel()
        await asyncio.gather(queued, return_exceptions=True)
        gate.set()
        assert await busy
    assert started == []
