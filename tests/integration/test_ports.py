"""Services that start at the same time reserve different blocks of ports."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from services.launch import isolation
from services.settings import SettingsError
from tests.checkout import sources

AT_ONCE = 12
RESERVE = """
import multiprocessing, sys
from services.launch import isolation
def reserve(begin, end):
    begin.wait()
    with isolation.reserved() as block:
        print(f"{block.start} {block.stop}\\n", end="", flush=True)  # as one piece
        end.wait()
fork, count = multiprocessing.get_context("fork"), int(sys.argv[1])
barriers = [fork.Barrier(count, timeout=100) for _ in range(2)]
for _ in range(count):
    fork.Process(target=reserve, args=barriers).start()
"""
HOLD = """
from services.launch import isolation
with isolation.reserved() as block:
    print(block.start, block.stop, flush=True)
    input()
"""


def test_processes_that_reserve_at_once_share_no_port() -> None:
    """All are forks of one, which begin with the same random numbers."""
    command = [sys.executable, "-c", RESERVE, str(AT_ONCE)]
    environment = {**os.environ, "PYTHONPATH": sources()}
    blocks = subprocess.check_output(command, env=environment, text=True).splitlines()
    found = [port for block in blocks for port in range(*map(int, block.split()))]
    assert len(found) == len(set(found)) == AT_ONCE * isolation.SIZE


def test_a_process_that_is_killed_gives_its_block_back(monkeypatch: pytest.MonkeyPatch) -> None:
    command, environment = [sys.executable, "-c", HOLD], {**os.environ, "PYTHONPATH": sources()}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as other:
        block = range(*map(int, other.stdout.readline().split()))
        monkeypatch.setattr(isolation, "BLOCKS", [block])
        with pytest.raises(SettingsError, match="consecutive ports are free"), isolation.reserved():
            pass
        other.kill()
        other.wait()
        with isolation.reserved() as ours:
            assert ours == block


def test_a_block_with_a_listener_or_a_port_of_the_settings_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as held:
        first, second, third = (held.enter_context(isolation.reserved()) for _ in range(3))
        held.close()
        monkeypatch.setattr(isolation, "BLOCKS", [first, second, third])
        with socket.socket() as taken:
            taken.bind(("", first[100]))
            taken.listen()
            with isolation.reserved(besides=[8000, second[-1]]) as found:
                assert found == third
