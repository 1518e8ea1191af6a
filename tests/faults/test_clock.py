"""A clock that jumps, which libfaketime shows to all processes of a service."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Service, start
from tests.faults import processes
from tests.faults.conftest import under_load
from tests.faults.load import Pictures
from tests.faults.report import Report
from tests.faults.test_processes import FAULTS, ROOMY_S, only_in_flight

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), FAULTS]

SEEN_S = 3
"""After which all processes have looked at the clock."""
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says how far the clock is off."""
    if FAKETIME is None:
        pytest.skip("no libfaketime: install Debian's package of that name")
    file = tmp_path_factory.mktemp("clock") / "offset"
    file.write_text("+0")
    return file


@pytest.fixture(scope="module")
def heads(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, service: Service, clock: Path
) -> Iterator[Service]:
    """Without a backbone: of the processes, those that look at the clock."""
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
    """Who asks at that moment may hear that the time is over: gRPC begins its deadlines with the
    wall clock. Nobody else notices, and what is killed then is replaced.
    """
    jumps = []
    async with under_load(
        heads, pictures, report, "clock an hour ahead, then back", backbone=False
    ) as load:
        load.mark()
        for offset in ("+3600", "+0"):
            jumps.append(time.monotonic())
            clock.write_text(offset)
            await asyncio.sleep(5)
        await load.recovered(ROOMY_S)
    failed = [a for attempts in load.attempts.values() for a in attempts if a.code != "OK"]
    for attempt in failed:
        assert attempt.code == "DEADLINE_EXCEEDED", attempt
        assert any(abs(attempt.sent - jump) < SEEN_S for jump in jumps), (attempt, jumps)
    fault = "`kill -9`, replica of semantic, after the clock has jumped"
    async with under_load(heads, pictures, report, fault, backbone=False) as load:
        load.mark()
        processes.kill(heads, processes.replica("semantic"))
        await load.recovered(ROOMY_S)
    only_in_flight(load, {"semantic"})
