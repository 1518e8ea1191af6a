import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch

from samclip_core import image
from services import metrics, threads
from services.settings import Settings

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


@pytest.mark.parametrize(("asked", "cores"), [(0, len(os.sched_getaffinity(0))), (3, 3)])
def test_torch_takes_the_cores_that_the_settings_give(asked: int, cores: int) -> None:
    before = torch.get_num_threads()
    try:
        threads.use_cores(Settings(torch_threads=asked))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == cores
    finally:
        torch.set_num_threads(before)


BOUND = """
import os, threading
from services import threads
from services.settings import Settings
threads.use_cores(Settings(torch_threads={asked}))
import torch
def compute():
    torch.ones(4_000_000).exp()
    of_each = (os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task"))
    print(sorted(core for cores in of_each if len(cores) == 1 for core in cores))
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(sorted(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: nowhere else to go")
@pytest.mark.parametrize("asked", [0, 2])
def test_where_all_cores_are_used_each_of_openmps_threads_stays_on_one(asked: int) -> None:
    """And nothing else does: not who asked, nor what it starts later."""
    done = subprocess.run(
        [sys.executable, "-c", BOUND.format(asked=asked)],
        capture_output=True,
        text=True,
        check=True,
    )
    all_cores = str(sorted(os.sched_getaffinity(0)))
    assert done.stdout.splitlines() == ["[]" if asked else all_cores, all_cores]
