"""A clock that jumps, simulated by libfaketime for all processes of a service."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, start
from tests.faults import processes
from tests.faults.conftest import under_load
from tests.faults.load import Pictures
from tests.faults.report import Report
from tests.faults.test_processes import FAULTS, ROOMY_S, only_in_flight

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


async def test_the_clock_jumps(
    heads: Service, pictures: Pictures, report: Report, clock: Path
) -> None:
    """A clock an hour ahead causes no failures, and a killed replica is replaced."""
    fault = "clock an hour ahead"
    await jumps(heads, pictures, report, fault, clock, "+3600")
    await replaced(heads, pictures, report, f"`kill -9`, replica of semantic, {fault}", ROOMY_S)


async def test_the_clock_jumps_back(
    heads: Service, pictures: Pictures, report: Report, clock: Path
) -> None:
    """A clock set back causes no failures; the log warns that replicas are no longer replaced."""
    fault = "clock an hour back"
    await jumps(heads, pictures, report, fault, clock, "+0")
    assert "the clock was set back by 3600 s" in heads.log.read_text()
    report.note(
        "Clock set back",
        "Ray's timers and Serve's controller wait for a wall-clock time: until the clock has "
        "caught up, killed replicas are not replaced. The service warns of this in its log.",
    )


@pytest.mark.xfail(strict=True, reason="Ray waits for the wall clock", raises=AssertionError)
async def test_what_is_killed_after_it_is_replaced(
    heads: Service, pictures: Pictures, report: Report
) -> None:
    fault = "`kill -9`, replica of semantic, clock an hour back"
    await replaced(heads, pictures, report, fault, within_s=40)


async def jumps(
    heads: Service, pictures: Pictures, report: Report, fault: str, clock: Path, to: str
) -> None:
    """Set the clock's offset to ``to`` under load, and check that nothing fails."""
    async with under_load(heads, pictures, report, fault, backbone=False) as load:
        load.mark()
        clock.write_text(to)
        await asyncio.sleep(5)
        await load.recovered(ROOMY_S)
        assert not load.failures()


async def replaced(
    heads: Service, pictures: Pictures, report: Report, fault: str, within_s: float
) -> None:
    """Kill the replica of semantic segmentation, and check that it is replaced in time."""
    async with under_load(heads, pictures, report, fault, backbone=False) as load:
        load.mark()
        processes.kill(heads, processes.replica("semantic"))
        await load.recovered(within_s)
    only_in_flight(load, {"semantic"})
