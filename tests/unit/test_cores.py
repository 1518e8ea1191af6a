import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from samclip_core.cores import Cores, last_level_cache, one_core


@pytest.fixture
def two_threads() -> Iterator[None]:
    """On any machine, and whatever other tests have left."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_come_in_order_each_with_its_share_of_the_cores(two_threads: None) -> None:
    cores, seen = Cores(), []

    def work(part: int) -> int:
        time.sleep(0.02 * (3 - part))  # the first is the last to be done
        seen.append(
            (torch.get_num_threads(), threading.current_thread() is threading.main_thread())
        )
        return 10 * part

    assert list(cores.map(work, [0, 1, 2])) == [0, 10, 20]
    assert seen == [(1, False)] * 3
    assert torch.get_num_threads() == 2


def test_one_part_is_done_with_all_cores() -> None:
    before = torch.get_num_threads()

    def work(part: str) -> tuple[str, int]:
        return part, torch.get_num_threads()

    assert list(Cores().map(work, ["a"])) == [("a", before)]
    assert list(Cores().map(work, [])) == []


def test_what_comes_while_one_part_has_all_cores_waits_for_it(two_threads: None) -> None:
    cores = Cores()
    begun, gate, seen = threading.Event(), threading.Event(), list[tuple[str, int]]()

    def alone(part: str) -> None:
        begun.set()
        gate.wait(30)
        seen.append((part, torch.get_num_threads()))

    def behind(part: str) -> None:
        seen.append((part, torch.get_num_threads()))

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(lambda: list(cores.map(alone, ["first"])))
        begun.wait(30)
        others = [pool.submit(lambda: list(cores.map(behind, ["other"]))) for _ in range(2)]
        while cores._parts < 3:
            time.sleep(0.001)
        assert not any(other.done() for other in others)
        gate.set()
        for asked in (first, *others):
            asked.result(30)
    assert seen[0] == ("first", 2)
    assert seen[1] == ("other", 1)  # both came while it had all


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 2)])
def test_one_part_leaves_half_of_the_cores_to_others_about_to_come(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert list(Cores().map(abs, [-1], alone=False)) == [1]
    assert asked[0] == threads
    assert asked[-1] == cores


def test_cores_are_free_until_parts_are_under_way(two_threads: None) -> None:
    cores, gate = Cores(), threading.Barrier(2)

    def work(part: int) -> None:
        gate.wait(30)
        gate.wait(30)

    assert cores.free == 2
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: list(cores.map(work, [0], alone=False)))
        gate.wait(30)
        assert cores.free == 1
        gate.wait(30)
        asked.result(30)
    assert cores.free == 2


def test_a_thread_that_is_new_while_others_compute_has_all_cores_later(two_threads: None) -> None:
    cores, gate = Cores(), threading.Barrier(3)

    def work(part: int) -> None:
        gate.wait(30)  # all have set their threads
        gate.wait(30)

    def late() -> int:
        gate.wait(30)
        torch.get_num_threads()  # torch takes now what this thread begins with
        gate.wait(30)
        first.result(30)
        return next(cores.map(lambda _: torch.get_num_threads(), [0]))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(cores.map(work, [0, 1])))
        assert pool.submit(late).result(60) == 2


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="OpenMP helps on several cores only")
def test_whoever_asks_shares_the_helpers_of_openmp() -> None:
    """More of them than cores, and none waits for its next loop any more: all go to sleep."""

    with one_core():
        large = torch.ones(1_000_000)

    def ask() -> int:
        list(Cores().map(torch.exp, [large]))
        return len(os.listdir("/proc/self/task"))

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for pool in (one, other):  # both threads are there before helpers are counted
            pool.submit(int).result()
        seen = [pool.submit(ask).result() for pool in (one, other, one, other)]
    assert max(seen) == seen[0]  # what other tests have left behind may end meanwhile


def test_whatever_thread_asks_one_computes_on_all_cores(two_threads: None) -> None:
    """One that is warmed up in its main thread computes as fast in another one."""

    def ask() -> threading.Thread:
        return next(Cores().map(lambda _: threading.current_thread(), [0]))

    with ThreadPoolExecutor(1) as pool:
        assert ask() is pool.submit(ask).result() is not threading.main_thread()


def test_on_one_core_parts_are_done_where_they_were_asked_for() -> None:
    with one_core():
        threads = list(Cores().map(lambda _: threading.current_thread(), [0, 1]))
        assert torch.get_num_threads() == 1
    assert threads == [threading.current_thread()] * 2


def test_on_one_core_one_part_at_a_time_is_worked_on() -> None:
    with one_core():
        cores = Cores()
    at_work = threading.Lock()

    def work(part: int) -> bool:
        if not at_work.acquire(blocking=False):
            return False
        time.sleep(0.002)
        at_work.release()
        return True

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(lambda: list(cores.map(work, range(9), False))) for _ in range(2)]
        assert all(all(each.result(30)) for each in asked)


def test_what_is_computed_once_leaves_the_number_of_cores() -> None:
    before = torch.get_num_threads()
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_an_error_is_raised_and_the_cores_are_given_back() -> None:
    before = torch.get_num_threads()

    def work(part: int) -> int:
        return 1 // part

    with pytest.raises(ZeroDivisionError):
        list(Cores().map(work, [1, 0, 1]))
    assert torch.get_num_threads() == before


def test_the_last_level_cache_is_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip_core.cores.Path", lambda _: tmp_path)
    assert last_level_cache() == 0  # a system that does not say
    for index, size in enumerate(("48K", "64K", "2048K", "32768K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache() == 32 * 2**20
