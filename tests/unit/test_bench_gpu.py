"""The sweep over batches, on a device made up."""

import pytest
import torch

from tests.bench import gpu
from tests.bench.bench import Bench


def test_a_sweep_gives_rates_and_shares_of_the_peak() -> None:
    lines = {line.name: line for line in gpu.sweep("x", lambda batch: 0.1 + 0.1 * batch, 3, 5, 50)}
    assert lines["x, batch 1"].rounds == pytest.approx([5, 5, 5])
    assert lines["x, batch 16"].median == pytest.approx(16 / 1.7)
    assert lines["x, batch 1: share of products"].median == pytest.approx(100 * 5 * 5 / 50)
    assert len(lines) == 2 * len(gpu.BATCHES)


def test_there_is_nothing_to_measure_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench = Bench.__new__(Bench)  # nothing of it is looked at
    assert gpu.run(bench) == []
