from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.loop import Schedule, fit, optimizer, rate_at

SCHEDULE = Schedule(steps=7, rate=0.1, warmup=2, average=0.5, save_every=2)


class StoppedError(Exception):
    pass


def model_of(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def step_of(
    model: nn.Module, before: Callable[[int], None] = lambda number: None
) -> Callable[[int], dict[str, Tensor]]:
    def step(number: int) -> dict[str, Tensor]:
        before(number)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        return {"square": loss.detach()}

    return step


def run(folder: Path, before: Callable[[int], None] = lambda number: None) -> nn.Module:
    model = model_of()
    optimiser = optimizer(SCHEDULE, model[0].parameters(), model[2].parameters())
    return fit("stage", model, optimiser, SCHEDULE, step_of(model, before), folder)


def stop_at(step: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == step:
            raise StoppedError

    return before


@pytest.mark.parametrize("stopped", [1, 4, 5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, stopped: int):
    """Bit for bit, whether it stops just after a save or loses a step; the log has no seam."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    expected = run(whole)
    with pytest.raises(StoppedError):
        run(resumed, stop_at(stopped))
    steps: list[int] = []
    model = run(resumed, steps.append)
    assert steps == list(range(stopped // 2 * 2, 7))
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    logs = [(folder / "stage.losses.tsv").read_text() for folder in (whole, resumed)]
    assert logs[0] == logs[1]
    assert [line.split("\t")[0] for line in logs[0].splitlines()] == [str(i) for i in range(7)]


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path):
    expected = run(tmp_path)
    log = (tmp_path / "stage.losses.tsv").read_text()
    model = run(tmp_path, stop_at(0))
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert (tmp_path / "stage.losses.tsv").read_text() == log


def test_nothing_but_the_state_and_the_log_is_left(tmp_path: Path):
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"stage.state.pt", "stage.losses.tsv"}


def test_it_gives_the_moving_average_of_the_weights(tmp_path: Path):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen: list[float] = []

    def step(number: int) -> dict[str, Tensor]:
        seen.append(model.weight.item())
        loss = 0.5 * model.weight.sum()
        loss.backward()
        return {"weight": loss.detach()}

    schedule = Schedule(steps=3, rate=1.0, warmup=1, average=0.75)
    fit("sum", model, torch.optim.SGD(model.parameters(), lr=1.0), schedule, step, tmp_path)
    # The rates are 1, 1 and 1/2 (half of the cosine), the gradient is 1/2.
    first, second, third = -0.5, -1.0, -1.25
    assert seen == pytest.approx([0, first, second])
    average = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert model.weight.item() == pytest.approx(average)


def test_a_wild_gradient_is_cut_to_length_one(tmp_path: Path):
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()

    def step(number: int) -> dict[str, Tensor]:
        loss = (model.weight * torch.tensor([3e4, 4e4])).sum()
        loss.backward()
        return {"wild": loss.detach()}

    schedule = Schedule(steps=1, rate=1.0, warmup=1)
    fit("wild", model, torch.optim.SGD(model.parameters(), lr=1.0), schedule, step, tmp_path)
    torch.testing.assert_close(before - model.weight.detach(), torch.tensor([[0.6, 0.8]]))


def test_frozen_parts_stay_as_they_are_to_the_bit(tmp_path: Path):
    model = model_of()
    model[0].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = optimizer(SCHEDULE, model[0].parameters(), model[2].parameters())
    fit("stage", model, optimiser, SCHEDULE, step_of(model), tmp_path)
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert changed == {"2.weight", "2.bias"}


def test_the_pretrained_part_learns_at_a_share_of_the_rate():
    schedule = Schedule(steps=1, rate=1e-3, encoder_rate=0.1)
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = optimizer(schedule, slow.parameters(), fast.parameters()).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-3])
    assert [group["params"] for group in groups] == [[*slow.parameters()], [*fast.parameters()]]


def test_what_may_not_learn_is_not_given_to_the_optimizer():
    slow, fast = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    fast.bias.requires_grad_(False)
    groups = optimizer(SCHEDULE, slow.parameters(), fast.parameters()).param_groups
    assert [group["params"] for group in groups] == [[fast.weight]]


def test_the_rate_climbs_in_a_line_and_falls_in_half_a_cosine():
    schedule = Schedule(steps=110, rate=1.0, warmup=10)
    rates = [rate_at(step, schedule) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    # Symmetric about its middle.
    assert [1 - rate for rate in rates[:9:-1]] == pytest.approx(rates[10:])


def test_a_schedule_may_be_all_warm_up_or_have_none():
    assert rate_at(0, Schedule(steps=5, rate=1.0, warmup=0)) == 1
    assert rate_at(4, Schedule(steps=5, rate=1.0, warmup=5)) == 1
    assert rate_at(9, Schedule(steps=5, rate=1.0, warmup=0)) == pytest.approx(0)
