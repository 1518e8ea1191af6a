"""What models cost is counted by PyTorch, and compared for the same questions."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from samclip_core.config import VIT_B
from samclip_core.nn.network import build
from training.claims import cost
from training.claims.cost import Asked


def test_a_question_has_the_operations_and_parameters_of_its_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A linear layer of 5×7 weights multiplies each of three rows: 2 · 3 · 5 · 7 operations."""
    layer = nn.Linear(5, 7)
    asked = Asked(partial(layer, torch.ones(3, 5)), [layer])
    monkeypatch.setattr(cost, "questions", lambda name: {cost.CLICK: asked})
    (row,) = cost.measure("mine", 2)
    assert (row.question, row.flop, row.parameters) == (cost.CLICK, 210, 42)
    assert row.seconds > 0


def test_attention_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three rows is multiplied with three keys of 5 numbers, and as many values."""
    rows = torch.ones(1, 1, 3, 5)
    asked = Asked(partial(functional.scaled_dot_product_attention, rows, rows, rows), [])
    monkeypatch.setattr(cost, "questions", lambda name: {cost.CLICK: asked})
    (row,) = cost.measure("mine", 1)
    assert row.flop == 2 * (2 * 3 * 3 * 5)


@pytest.mark.parametrize(("side", "gflop"), [(336, 122.2), (1024, 2049.4)])
def test_the_papers_student_costs_what_the_budget_says(side: int, gflop: float) -> None:
    with torch.device("meta"):
        net = build(VIT_B).eval()
        frame = torch.empty(1, 3, side, side), torch.empty(1, 2, dtype=torch.int64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net.encode(*frame)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.1)


def test_the_command_has_a_row_per_question_and_what_is_saved(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = str(tiny_checkpoint)
    assert cost.main([given, given, "--runs=1", f"--threads={torch.get_num_threads()}"]) == 0
    table, _, summary = capsys.readouterr().out.rpartition("\n\n")
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [row[1] for row in rows] == 2 * [*cost.QUESTIONS]
    assert [row[2:4] for row in rows[:5]] == [row[2:4] for row in rows[5:]]
    assert "1.00 of the operations and 1.00 of the parameters" in summary


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main(["nowhere"]) == 1
    assert capsys.readouterr().err.startswith("samclip cost: no checkpoint 'nowhere'")
