"""A device that fails or hangs is noticed, and a busy one is left alone."""

import asyncio

import pytest

from samclip_core.errors import Unavailable
from services.backbone import health_check
from services.backbone.health_check import HealthCheck


class Device:
    """A device that runs while ``free`` is set; ``tries`` counts the runs."""

    def __init__(self) -> None:
        self.tries = 0
        self.failure: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def run(self) -> None:
        self.tries += 1
        await self.free.wait()
        if self.failure:
            raise self.failure


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(health_check, "monotonic", lambda: now[0])
    monkeypatch.setattr(health_check, "ANSWER_S", 0.01)
    return now


async def test_a_device_that_has_just_worked_is_not_tested(clock):
    device = Device()
    asked = HealthCheck(device.run)
    for _ in range(5):
        await asked.check()
    assert device.tries == 0  # the probe is new
    clock[0] += health_check.EVERY_S + 1
    for _ in range(5):
        await asked.check()
    assert device.tries == 1
    for _ in range(5):
        clock[0] += health_check.EVERY_S + 1
        asked.worked()
        await asked.check()
    assert device.tries == 1


async def test_a_device_that_fails_is_reported_until_it_works_again(clock, caplog):
    device = Device()
    asked = HealthCheck(device.run)
    device.failure = RuntimeError("CUDA error: /secret/path")
    clock[0] += health_check.EVERY_S + 1
    for _ in range(2):
        with pytest.raises(Unavailable, match="does not work: see the service log") as caught:
            await asked.check()
        assert "/secret" not in str(caught.value)
    assert "CUDA error" in caplog.text
    device.failure = None
    await asked.check()
    assert device.tries == 3


async def test_a_busy_device_is_healthy_and_a_hanging_one_is_not(clock):
    device = Device()
    asked = HealthCheck(device.run)
    clock[0] += health_check.EVERY_S + 1
    device.free.clear()
    for _ in range(3):
        await asked.check()
        clock[0] += health_check.WEDGED_S / 4
    assert device.tries == 1
    clock[0] += health_check.WEDGED_S
    with pytest.raises(Unavailable, match="has not answered for"):
        await asked.check()
    asked.worked()  # a batch has finished, so the device was only busy
    await asked.check()
    device.free.set()
    await asked.check()
    assert device.tries == 1
