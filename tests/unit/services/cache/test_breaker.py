import asyncio

import pytest

from services.cache import breaker
from services.cache.breaker import FAILURES, Breaker
from services.observability import metrics

SHOWN = metrics.REDIS_UP.labels("test")


class Patient:
    def __init__(self) -> None:
        self.well = False
        self.probes = 0
        self.probed = asyncio.Event()

    async def __call__(self) -> None:
        self.probes += 1
        self.probed.set()
        if not self.well:
            raise ConnectionError("ill")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(breaker, "PROBE_S", 0.001)


async def test_it_opens_after_failures_in_a_row_only():
    found = Breaker("it", Patient(), SHOWN)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            found.failed(ConnectionError("gone"))
        found.succeeded()
    assert found.closed
    for _ in range(FAILURES):
        found.failed(ConnectionError("gone"))
    assert not found.closed
    found.close()


async def test_it_heals_by_itself_and_opens_again(caplog):
    patient = Patient()
    found = Breaker("it", patient, SHOWN)
    for _ in range(2):
        patient.well = False
        for _ in range(FAILURES + 5):
            found.failed(ConnectionError("gone"))
        patient.probed.clear()
        await patient.probed.wait()
        assert not found.closed
        assert SHOWN._value.get() == 0
        patient.well = True
        while not found.closed:
            await asyncio.sleep(0.001)
        assert SHOWN._value.get() == 1
    assert caplog.text.count("it disabled after repeated failures: gone") == 2
    assert caplog.text.count("it enabled again") == 2
    probes = patient.probes
    await asyncio.sleep(0.01)
    assert patient.probes == probes  # probing ends after recovery


async def test_closed_it_tries_no_more():
    patient = Patient()
    found = Breaker("it", patient, SHOWN)
    for _ in range(FAILURES):
        found.failed(ConnectionError("gone"))
    await patient.probed.wait()
    found.close()
    await asyncio.sleep(0)
    probes = patient.probes
    await asyncio.sleep(0.01)
    assert patient.probes == probes
