import threading
import time

import pytest
import torch

from samclip_core.cores import Cores


def test_parts_come_in_order_each_with_its_share_of_the_cores() -> None:
    before = torch.get_num_threads()
    cores, seen = Cores(), []

    def work(part: int) -> int:
        time.sleep(0.02 * (3 - part))  # the first is the last to be done
        seen.append(
            (torch.get_num_threads(), threading.current_thread() is threading.main_thread())
        )
        return 10 * part

    assert list(cores.map(work, [0, 1, 2])) == [0, 10, 20]
    assert seen == [(max(1, before // 3), False)] * 3
    assert torch.get_num_threads() == before


def test_one_part_is_done_where_it_was_asked_for_with_all_cores() -> None:
    before = torch.get_num_threads()

    def work(part: str) -> tuple[str, int, threading.Thread]:
        return part, torch.get_num_threads(), threading.current_thread()

    assert list(Cores().map(work, ["a"])) == [("a", before, threading.current_thread())]
    assert list(Cores().map(work, [])) == []


def test_an_error_is_raised_and_the_cores_are_given_back() -> None:
    before = torch.get_num_threads()

    def work(part: int) -> int:
        return 1 // part

    with pytest.raises(ZeroDivisionError):
        list(Cores().map(work, [1, 0, 1]))
    assert torch.get_num_threads() == before
