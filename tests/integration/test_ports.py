"""Services that start at the same time reserve different blocks of ports."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from services.launch import isolation
from services.settings import SettingsError
from tests.checkout import sources

AT_ONCE = 12
RESERVE = """
import sys
from services.launch import isolation
sys.stdin.readline()
with isolation.reserved() as block:
    print(block.start, block.stop, flush=True)
    sys.stdin.readline()
"""


def process() -> subprocess.Popen[str]:
    path = sources()
    return subprocess.Popen(
        [sys.executable, "-c", RESERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def block_of(reserving: subprocess.Popen[str]) -> range:
    assert reserving.stdout
    return range(*map(int, reserving.stdout.readline().split()))


def go_on(reserving: subprocess.Popen[str]) -> None:
    assert reserving.stdin
    reserving.stdin.write("\n")
    reserving.stdin.flush()


def test_processes_that_reserve_at_once_share_no_port() -> None:
    processes = [process() for _ in range(AT_ONCE)]
    try:
        for each in processes:
            go_on(each)
        found = [port for each in processes for port in block_of(each)]
        assert len(found) == len(set(found)) == AT_ONCE * isolation.SIZE
    finally:
        for each in processes:
            each.communicate("\n")


def test_a_process_that_is_killed_gives_its_block_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with process() as other:
        go_on(other)
        block = block_of(other)
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
