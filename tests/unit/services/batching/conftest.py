from types import SimpleNamespace

import pytest

from services.batching import admission, queue
from services.batching import batcher as batching


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the batcher's clock by one that only advances when ``now`` is set."""
    clock = SimpleNamespace(now=1000.0)
    for module in (admission, batching, queue):
        monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock
