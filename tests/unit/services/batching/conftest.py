from types import SimpleNamespace

import pytest

from services.batching import admission, queue
from tests.unit.services.batching.device import Device


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the queue's clock by one that only advances when ``now`` is set."""
    clock = SimpleNamespace(now=1000.0)
    for module in (admission, queue):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock
