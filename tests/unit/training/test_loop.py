from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from training.loop import Part, Parts, Schedule, Stage, optimizer, rate_at

SCHEDULE = Schedule(steps=7, rate=0.1, warmup=2, average=0.5, save_every=2)


class StoppedError(Exception):
    pass


def model_of(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def square(net: nn.Module, number: int) -> Iterator[Part]:
    """Yield a step's loss in two parts of the batch."""
    x_B3 = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    for half_B3 in x_B3.chunk(2):
        loss = (net(half_B3) - half_B3.sum(dim=1, keepdim=True)).square().mean() / 2
        yield Part(loss, {"square": loss.detach()})


def run(
    folder: Path,
    before: Callable[[int], None] = lambda number: None,
    schedule: Schedule = SCHEDULE,
    **more: Any,
) -> nn.Module:
    def batches(steps: range) -> Iterator[int]:
        for number in steps:
            before(number)
            yield number

    return fit(model_of(), square, folder, schedule, batches, **more)


def fit(
    model: nn.Module,
    parts: Parts,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    batches: Callable[[range], Iterable[int]] = iter,
    **more: Any,
) -> nn.Module:
    learning = more.pop("learning", None) or optimizer(schedule, (), model.parameters())
    Stage("stage", model, learning, schedule, folder).fit(batches, parts, **more)
    return model


def stop_at(step: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == step:
            raise StoppedError

    return before


@pytest.mark.parametrize("stopped", [1, 4, 5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, stopped: int):
    """Weights and log are identical, whether it stops just after a save or loses a step."""
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
    names, *lines = logs[0].splitlines()
    assert names == "step\tsquare"
    assert [line.split("\t")[0] for line in lines] == [str(i) for i in range(7)]


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

    def parts(net: nn.Module, number: int) -> Iterator[Part]:
        seen.append(net.weight.item())
        loss = 0.5 * net.weight.sum()
        yield Part(loss, {"weight": loss.detach()})

    schedule = Schedule(steps=3, rate=1.0, warmup=1, average=0.75)
    fit(model, parts, tmp_path, schedule, learning=torch.optim.SGD(model.parameters(), lr=1.0))
    # The rates are 1, 1 and 1/2 (half of the cosine), the gradient is 1/2.
    first, second, third = -0.5, -1.0, -1.25
    assert seen == pytest.approx([0, first, second])
    average = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert model.weight.item() == pytest.approx(average)


def test_a_wild_gradient_is_cut_to_length_one(tmp_path: Path):
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()

    def parts(net: nn.Module, number: int) -> Iterator[Part]:
        loss = (net.weight * torch.tensor([3e4, 4e4])).sum()
        yield Part(loss, {"wild": loss.detach()})

    schedule = Schedule(steps=1, rate=1.0, warmup=1)
    fit(model, parts, tmp_path, schedule, learning=torch.optim.SGD(model.parameters(), lr=1.0))
    torch.testing.assert_close(before - model.weight.detach(), torch.tensor([[0.6, 0.8]]))


def test_frozen_parts_stay_as_they_are_to_the_bit(tmp_path: Path):
    model = model_of()
    model[0].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = optimizer(SCHEDULE, model[0].parameters(), model[2].parameters())
    fit(model, square, tmp_path, learning=optimiser)
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
    # The curve is symmetric about its middle.
    assert [1 - rate for rate in rates[:9:-1]] == pytest.approx(rates[10:])


def test_a_schedule_may_be_all_warm_up_or_have_none():
    assert rate_at(0, Schedule(steps=5, rate=1.0, warmup=0)) == 1
    assert rate_at(4, Schedule(steps=5, rate=1.0, warmup=5)) == 1
    assert rate_at(9, Schedule(steps=5, rate=1.0, warmup=0)) == pytest.approx(0)


def test_parts_add_up_to_the_loss_of_the_whole_step(tmp_path: Path):
    def whole(net: nn.Module, number: int) -> Iterator[Part]:
        parts = list(square(net, number))
        loss = torch.stack([part.loss for part in parts]).sum()
        yield Part(loss, {"square": loss.detach()})

    halves = fit(model_of(), square, _folder(tmp_path / "halves"))
    once = fit(model_of(), whole, _folder(tmp_path / "once"))
    for key, value in once.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[key], value)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_the_weights_of_the_lowest_validation_loss_win_or_the_last(
    tmp_path: Path, keep: Literal["best", "last"], kept: int
):
    """Validation runs at steps 2, 4, 6 and 7; the second is the best."""
    schedule = replace(SCHEDULE, keep=keep)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    seen: list[dict[str, Tensor]] = []

    def parts(net: nn.Module, batch: int | float) -> Iterator[Part]:
        if isinstance(batch, float):
            seen.append({key: value.clone() for key, value in net.state_dict().items()})
            yield Part(torch.tensor(batch), {})
        else:
            yield from square(net, batch)

    reports: list[dict[str, float]] = []
    validation = {"validation": lambda: [next(losses)], "report": reports.append}
    model = fit(model_of(), parts, tmp_path, schedule, **validation)
    for key, value in model.state_dict().items():
        assert torch.equal(value, seen[kept][key])
    assert [report["stage/validation"] for report in reports] == [3, 1, 2, 4]
    lines = (tmp_path / "stage.validation.tsv").read_text().splitlines()
    assert lines == ["step\tloss", "2\t3.00000", "4\t1.00000", "6\t2.00000", "7\t4.00000"]


def test_a_full_disk_says_what_to_do_and_leaves_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(StoppedError):
        run(tmp_path, stop_at(3))
    good = (tmp_path / "stage.state.pt").read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(torch, "save", _full)
        with pytest.raises(OSError, match=r"could not be written .*free some space and start"):
            run(tmp_path)
    assert (tmp_path / "stage.state.pt").read_bytes() == good
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".tsv"}
    run(tmp_path)


def _full(content: object, path: Path) -> None:
    path.write_bytes(b"half of it")
    raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")
