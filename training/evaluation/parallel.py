"""Processes that share the pictures of an evaluation.

Each one runs the whole task; only the work on pictures is dealt. All of them then have every result
in order, so figures do not depend on their number.
"""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch.distributed as dist
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, start_processes
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
LONGEST = timedelta(days=7)
"""Longest that a process waits for the results of another one; a lost one ends them at once."""
GRACE_S = 60
"""Seconds in which the parent notices that a process has ended."""


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over the items with a progress bar on standard error."""
    return iter(tqdm(items, desc=what, mininterval=2, total=total))


def shared(items: Iterable[T], work: Callable[[T], R], what: str) -> list[R]:
    """Return the result of each item, in order; each process works on every n-th item.

    Raises the first error of any process, in all of them alike.
    """
    rank, count = place()
    own = [*items][rank::count]
    if count == 1:
        return [work(item) for item in progress(own, what)]
    outcome: list[R] | BaseException
    try:
        outcome = [work(item) for item in progress(own, what)]
    except Exception as error:
        outcome = _sendable(error)
    outcomes: list[Any] = [None] * count
    try:
        dist.all_gather_object(outcomes, outcome)
    except RuntimeError:
        time.sleep(GRACE_S)  # another process has ended, and its end is what the parent has to see
        raise
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    total = sum(map(len, outcomes))
    return [outcomes[number % count][number // count] for number in range(total)]


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def run(task: Callable[[T], object], given: T, count: int) -> None:
    """Run ``task(given)`` in ``count`` processes of this machine; all but the first print nothing.

    Raises the first error of any of them, SystemExit included, or a RuntimeError with its name and
    message if pickle cannot make it again; and ChildProcessError if one is lost.
    """
    get_context("forkserver").set_forkserver_preload([task.__module__])  # imported once for all
    with TemporaryDirectory() as folder:
        what = task, given, count, Path(folder)
        try:
            start_processes(_process, what, count, start_method="forkserver")
        except ProcessExitedException as error:
            own = Path(folder, f"error.{error.error_index}")
            if own.exists():
                raise pickle.loads(own.read_bytes()) from None
            raise ChildProcessError(
                f"a worker was ended by {error.signal_name or error.exit_code}. If the memory was "
                "full, give fewer --workers"
            ) from error


def _process(
    rank: int, task: Callable[[Any], object], given: object, count: int, folder: Path
) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=count, timeout=LONGEST
    )
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        task(given)
    except (Exception, SystemExit) as error:
        sent = _sendable(error)
        sent.add_note(traceback.format_exc())
        (folder / f"error.{rank}").write_bytes(pickle.dumps(sent))
        sys.exit(1)
    dist.destroy_process_group()


def _sendable(error: BaseException) -> BaseException:
    """Return the error, or one with its name and message if pickle cannot make it again."""
    with suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
