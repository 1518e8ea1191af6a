"""Heads that use the backbone of another service, with collections in files."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, start
from tests.faults import processes, relay
from tests.faults.conftest import Loaded, under_load
from tests.faults.load import Load, Pictures
from tests.faults.relay import Relay
from tests.faults.report import Report
from tests.faults.test_processes import FAULTS, NEEDS_BACKBONE, only_in_flight

pytestmark = [pytest.mark.e2e, FAULTS]

DISK_MB = 64


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a small file system that a test can fill; skip the test if that is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(directory)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system: run as root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture(scope="module")
def cable(service: Service) -> Iterator[Relay]:
    """Run a relay between the heads and the backbone."""
    with relay.running(service.grpc_port) as running:
        yield running


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("disk")
    with small_disk(directory):
        yield directory


@pytest.fixture(scope="module")
def heads(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, cable: Relay, disk: Path
) -> Iterator[Service]:
    running = start(
        tmp_path_factory.mktemp("heads"),
        str(weights),
        BACKBONE_ADDRESS=f"127.0.0.1:{cable.port}",
        INDEX_DIR=disk / "index",
    )
    yield running
    running.stop()


@pytest.fixture
def loaded(heads: Service, pictures: Pictures, report: Report) -> Loaded:
    """Return a context manager that applies load to the heads during the named fault."""
    return partial(under_load, heads, pictures, report, backbone=False)


async def test_the_network_is_cut(loaded: Loaded, cable: Relay) -> None:
    """Cached requests are answered; the others fail with a status that allows a retry."""
    async with loaded("network to the backbone cut, for 10 s") as load:
        cable.cut()
        await asyncio.sleep(10)
        only_unavailable(load, NEEDS_BACKBONE)
        cable.mend()
        load.mark()


async def test_the_network_falls_silent(loaded: Loaded, cable: Relay) -> None:
    """The heads abandon silent connections and open new ones."""
    async with loaded("connections to the backbone fall silent for ever") as load:
        cable.silence()
    only_unavailable(load, NEEDS_BACKBONE)


async def test_retrieval_is_killed_while_it_writes_files(loaded: Loaded, heads: Service) -> None:
    async with loaded("`kill -9`, replica of retrieval, collections in files") as load:
        processes.kill(heads, processes.replica("retrieval"))
    only_in_flight(load, {"index", "search"})


async def test_the_disk_of_the_index_is_full(loaded: Loaded, disk: Path) -> None:
    """Only stored items are acknowledged, and writes resume when there is space again."""
    async with loaded("disk of the index full, for 5 s") as load:
        ballast = disk / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}"], capture_output=True, check=False)
        assert shutil.disk_usage(disk).free == 0
        await asyncio.sleep(5)
        only_unavailable(load, {"index"})
        ballast.unlink()
        load.mark()


def only_unavailable(load: Load, kinds: set[str]) -> None:
    """Check that only these kinds failed since the mark, with a status that allows a retry."""
    assert load.failures().keys() <= kinds
    assert {code for codes in load.failures().values() for code in codes} <= {"UNAVAILABLE"}
