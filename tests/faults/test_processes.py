"""Processes that are killed, stopped, or cannot be started under load."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.conftest import Service
from tests.faults import processes
from tests.faults.conftest import Loaded
from tests.faults.load import Load

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NOTICED_S = 5
"""Requests sent later than this after a fault are not in flight on the killed process."""
NEEDS_BACKBONE = {"backbone", "classification", "segmentation", "semantic", "index", "search"}
AFFECTED = {
    "backbone": NEEDS_BACKBONE,
    "classification": {"classification"},
    "segmentation": {"segmentation"},
    "semantic": {"semantic"},
    "retrieval": {"index", "search"},
    "gateway": {"gateway"},
}
FAULTS = pytest.mark.faults  # not in `make test`
BROKEN_OFF = {"UNAVAILABLE", "HTTP 502", "HTTP 503", "RemoteProtocolError", "ReadError"}


def only_in_flight(load: Load, kinds: set[str]) -> None:
    """Check that all failed requests were in flight at the fault, and may be retried."""
    assert load.failures().keys() <= kinds
    for kind, attempts in load.attempts.items():
        for attempt in (a for a in attempts if a.code != "OK"):
            assert attempt.code in BROKEN_OFF, (kind, attempt)
            assert attempt.sent - load.fault_at < NOTICED_S, (kind, attempt)


@pytest.mark.parametrize(
    "application",
    [
        "classification",
        *(pytest.param(name, marks=FAULTS) for name in AFFECTED if name != "classification"),
    ],
)
async def test_a_replica_is_killed(loaded: Loaded, service: Service, application: str) -> None:
    """Requests to the replica wait until it has restarted; others are not affected."""
    async with loaded(f"`kill -9`, replica of {application}") as load:
        processes.kill(service, processes.replica(application))
    only_in_flight(load, AFFECTED[application])


@FAULTS
@pytest.mark.parametrize("application", ["classification", "backbone"])
async def test_a_replica_hangs(loaded: Loaded, service: Service, application: str) -> None:
    """Serve detects and replaces the replica, and the hung process is gone."""
    hanging = processes.the(service, processes.replica(application))
    async with loaded(f"`SIGSTOP`, replica of {application}") as load:
        hanging.suspend()
    assert load.failures().keys() <= AFFECTED[application]
    hanging.wait(60)


@FAULTS
async def test_the_controller_is_killed(loaded: Loaded, service: Service) -> None:
    """Requests are not affected, and the restarted controller replaces a killed replica."""
    async with loaded("`kill -9`, Serve's controller") as load:
        processes.kill(service, processes.CONTROLLER)
        await load.recovered()
        await asyncio.sleep(3)
    assert not load.failures()
    async with loaded("`kill -9`, Serve's controller and the replica of gateway") as load:
        processes.kill(service, processes.CONTROLLER)
        processes.kill(service, processes.replica("gateway"))
    only_in_flight(load, {"gateway"})


async def test_the_front_door_is_killed(loaded: Loaded, service: Service) -> None:
    async with loaded("`kill -9`, front door (HAProxy)"):
        processes.front_door(service).kill()


@FAULTS
async def test_the_inner_proxy_is_killed(loaded: Loaded, service: Service) -> None:
    async with loaded("`kill -9`, Serve's HAProxy"):
        for process in processes.inner_proxies(service):
            process.kill()


@FAULTS
async def test_the_actor_of_the_inner_proxy_is_killed(loaded: Loaded, service: Service) -> None:
    async with loaded("`kill -9`, the actor of Serve's HAProxy"):
        processes.kill(service, processes.PROXY_ACTOR)


@FAULTS
async def test_a_replica_that_cannot_be_started(
    loaded: Loaded, service: Service, weights: Path
) -> None:
    """Serve retries the start; requests that need no encoding are answered."""
    file = weights / "model.safetensors"
    async with loaded("the backbone cannot be started for 15 s") as load:
        target = file.readlink()
        file.unlink()
        load.mark()
        processes.kill(service, processes.replica("backbone"))
        await asyncio.sleep(15)
        assert not load.failures().keys() - NEEDS_BACKBONE
        file.symlink_to(target)
        load.mark()
