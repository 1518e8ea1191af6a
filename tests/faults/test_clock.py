"""A clock that jumps, simulated by libfaketime for all processes of a service."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, start
from tests.faults import processes
from tests.faults.conftest import Loaded, under_load
from tests.faults.load import PATIENT_S, Pictures
from tests.faults.report import Report
from tests.faults.test_processes import FAULTS, only_in_flight

pytestmark = [pytest.mark.e2e, FAULTS]

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file from which libfaketime reads the clock's offset."""
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed: install Debian's package libfaketime")
    file = tmp_path_factory.mktemp("clock") / "offset"
    file.write_text("+0")
    return file


@pytest.fixture(scope="module")
def heads(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, service: Service, clock: Path
) -> Iterator[Service]:
    """Run a service without a backbone: only the heads' processes see the fake clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(FAKETIME))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patch.setenv("FAKETIME_CACHE_DURATION", "1")
        patch.setenv("DONT_FAKE_MONOTONIC", "1")
        directory = tmp_path_factory.mktemp("heads")
        running = start(directory, str(weights), BACKBONE_ADDRESS=service.address)
    yield running
    running.stop()


@pytest.fixture
def loaded(heads: Service, pictures: Pictures, report: Report) -> Loaded:
    """Return a context manager that applies load to the heads during the named fault."""
    return partial(under_load, heads, pictures, report, backbone=False)


async def test_the_clock_jumps(loaded: Loaded, heads: Service, clock: Path) -> None:
    """A clock an hour ahead causes no failures, and a killed replica is replaced."""
    await jumps(loaded, "clock an hour ahead", clock, "+3600")
    await replaced(loaded, heads, "clock an hour ahead", PATIENT_S)


async def test_the_clock_jumps_back(
    loaded: Loaded, heads: Service, report: Report, clock: Path
) -> None:
    """A clock set back causes no failures; the log warns that replicas are no longer replaced."""
    await jumps(loaded, "clock an hour back", clock, "+0")
    assert "the clock was set back by 3600 s" in heads.log.read_text()
    report.note(
        "Clock set back",
        "Ray's timers and Serve's controller wait for a wall-clock time: until the clock has "
        "caught up, killed replicas are not replaced. The service warns of this in its log.",
    )


@pytest.mark.xfail(strict=True, reason="Ray waits for the wall clock", raises=AssertionError)
async def test_what_is_killed_after_it_is_replaced(loaded: Loaded, heads: Service) -> None:
    await replaced(loaded, heads, "clock an hour back", within_s=40)


async def jumps(loaded: Loaded, fault: str, clock: Path, to: str) -> None:
    """Set the clock's offset to ``to`` under load, and check that nothing fails."""
    async with loaded(fault) as load:
        clock.write_text(to)
        await asyncio.sleep(5)
    assert not load.failures()


async def replaced(loaded: Loaded, heads: Service, clock: str, within_s: float) -> None:
    """Kill the replica of semantic segmentation, and check that it is replaced in time."""
    fault = f"`kill -9`, replica of semantic, {clock}"
    async with loaded(fault, within_s=within_s) as load:
        processes.kill(heads, processes.replica("semantic"))
    only_in_flight(load, {"semantic"})
