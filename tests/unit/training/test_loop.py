import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from samclip_core.config import EDGE
from samclip_core.io.folder import Folder
from training import workers
from training.distillation.objectives import MaskLoss
from training.distillation.sampling import Drawn
from training.loop import Portion, Stage, frames_per_second
from training.recipes import Run, debug
from training.schedule import Schedule, optimizer

SCHEDULE = Schedule(steps=7, rate=0.1, warmup=2, average=0.5, save_every=2)


class StoppedError(Exception):
    pass


def model_of(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def square(net: nn.Module, number: int) -> Iterator[Portion]:
    """Yield a step's loss in two parts of the batch."""
    x_B3 = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    for half_B3 in x_B3.chunk(2):
        loss = (net(half_B3) - half_B3.sum(dim=1, keepdim=True)).square().mean() / 2
        yield Portion(loss, {"square": loss.detach()})


def run(
    folder: Path | str,
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
    portions: Callable[[nn.Module, Any], Iterator[Portion]],
    folder: Path | str,
    schedule: Schedule = SCHEDULE,
    batches: Callable[[range], Iterable[int]] = iter,
    shown: Sequence[str] = ("square",),
    **more: Any,
) -> nn.Module:
    learning = more.pop("learning", None) or optimizer(schedule, (), model.named_parameters())
    objective = SimpleNamespace(names=shown, portions=portions)
    Stage("stage", model, learning, schedule, folder, [objective]).fit(batches, **more)
    return model


def assert_equal(model: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def scripted(net: nn.Module, batch: int | float) -> Iterator[Portion]:
    """Yield the loss of a step, or that of a validation, which is its batch."""
    if isinstance(batch, float):
        yield Portion(torch.tensor(batch), {})
    else:
        yield from square(net, batch)


def stop_at(step: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == step:
            raise StoppedError

    return before


@pytest.mark.parametrize(("stopped", "protocol"), [(1, ""), (4, ""), (5, ""), (5, "memory://")])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, stopped: int, protocol: str
):
    """Weights and log are identical, whether it stops just after a save or loses a step."""
    whole, resumed = (f"{protocol}{tmp_path}/{name}" for name in ("whole", "resumed"))
    expected = run(whole)
    with pytest.raises(StoppedError):
        run(resumed, stop_at(stopped))
    steps: list[int] = []
    model = run(resumed, steps.append)
    assert steps == list(range(stopped // 2 * 2, 7))
    assert_equal(model, expected.state_dict())
    logs = [Folder(folder).text("stage.losses.tsv") for folder in (whole, resumed)]
    assert logs[0] == logs[1]
    names, *lines = logs[0].splitlines()
    assert names == "step\tsquare\tgradient_norm"
    assert [line.split("\t")[0] for line in lines] == [str(i) for i in range(7)]


def test_a_stage_that_is_done_is_not_done_again_and_leaves_its_state_and_log(tmp_path: Path):
    expected = run(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"stage.state.pt", "stage.losses.tsv", "tensorboard"}
    log = (tmp_path / "stage.losses.tsv").read_text()
    model = run(tmp_path, stop_at(0))
    assert_equal(model, expected.state_dict())
    assert (tmp_path / "stage.losses.tsv").read_text() == log


def test_it_gives_the_moving_average_of_the_weights(tmp_path: Path):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen: list[float] = []

    def parts(net: nn.Module, number: int) -> Iterator[Portion]:
        seen.append(net.weight.item())
        loss = 0.5 * net.weight.sum()
        yield Portion(loss, {"weight": loss.detach()})

    schedule = Schedule(steps=3, rate=1.0, warmup=1, average=0.75)
    learning = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(model, parts, tmp_path, schedule, learning=learning, shown=["weight"])
    # The rates are 1, 1 and 1/2 (half of the cosine), the gradient is 1/2.
    first, second, third = -0.5, -1.0, -1.25
    assert seen == pytest.approx([0, first, second])
    average = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert model.weight.item() == pytest.approx(average)


def test_a_wild_gradient_is_cut_to_length_one(tmp_path: Path):
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()

    def parts(net: nn.Module, number: int) -> Iterator[Portion]:
        loss = (net.weight * torch.tensor([3e4, 4e4])).sum()
        yield Portion(loss, {"wild": loss.detach()})

    schedule = Schedule(steps=1, rate=1.0, warmup=1)
    learning = torch.optim.SGD(model.parameters(), lr=1.0)
    reports: list[dict[str, float]] = []
    fit(model, parts, tmp_path, schedule, learning=learning, shown=["wild"], report=reports.append)
    torch.testing.assert_close(before - model.weight.detach(), torch.tensor([[0.6, 0.8]]))
    assert reports[0]["stage/gradient_norm"] == 5e4  # as it was


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_the_weights_of_the_lowest_validation_loss_win_or_the_last(
    tmp_path: Path, keep: Literal["best", "last"], kept: int
):
    """Validation runs at steps 2, 4, 6 and 7; the second is the best."""
    schedule = replace(SCHEDULE, keep=keep)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    seen: list[dict[str, Tensor]] = []

    def parts(net: nn.Module, batch: int | float) -> Iterator[Portion]:
        if isinstance(batch, float):
            seen.append(copy.deepcopy(net.state_dict()))
        yield from scripted(net, batch)

    reports: list[dict[str, float]] = []
    validation = {"validation": lambda: [next(losses)], "report": reports.append}
    model = fit(model_of(), parts, tmp_path, schedule, **validation)
    assert_equal(model, seen[kept])
    assert [report["stage/validation"] for report in reports] == [3, 1, 2, 4]
    lines = (tmp_path / "stage.validation.tsv").read_text().splitlines()
    assert lines == ["step\tloss", "2\t3", "4\t1", "6\t2", "7\t4"]


def test_a_figure_that_falls_ends_the_stage_and_the_best_weights_win(tmp_path: Path):
    """It is measured at steps 2, 4 and 6; a run that starts again does not go on."""
    schedule = replace(SCHEDULE, keep="last", patience=1, stop_on="coco-boxes/ap=coco")
    figures, seen = iter([0.25, 0.5, 0.375]), list[dict[str, Tensor]]()

    def measure(net: nn.Module) -> float:
        seen.append(copy.deepcopy(net.state_dict()))
        return next(figures)

    model = run(tmp_path, schedule=schedule, measure=measure)
    assert_equal(model, seen[1])
    assert (
        tmp_path / "stage.measures.tsv"
    ).read_text() == "step\tfigure\n2\t0.25\n4\t0.5\n6\t0.375\n"
    assert len((tmp_path / "stage.losses.tsv").read_text().splitlines()) == 7
    assert_equal(run(tmp_path, stop_at(0), schedule, measure=measure), seen[1])


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
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".tsv", ""}
    run(tmp_path)


def _full(content: object, path: Path) -> None:
    path.write_bytes(b"half of it")
    raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_and_keeps_the_state(tmp_path: Path, where: str):
    """The error names stage, step, part and parameter; the run resumes from the state before."""
    model = model_of()

    def parts(net: nn.Module, number: int) -> Iterator[Portion]:
        yield from square(net, number)
        weight = net[2].weight.sum()
        loss = (weight - weight.detach()).sqrt() if where == "gradient" else weight * math.nan
        yield Portion(loss * (1.0 if number == 5 else 0.0), {"other": loss.detach()})

    def sound(net: nn.Module, number: int) -> Iterator[Portion]:
        yield from parts(net, number) if number == 5 else square(net, number)

    part = "other, gradient_norm" if where == "loss" else "gradient_norm"
    with pytest.raises(FloatingPointError) as stop:
        fit(model, sound, tmp_path, shown=("square", "other"))
    assert "stage stage, step 5: expected finite figures, got square 0." in str(stop.value)
    assert f"not finite: {part}; gradients that are not finite: 1 ['2.weight']" in str(stop.value)
    assert torch.load(tmp_path / "stage.state.pt", weights_only=True)["done"] == 4
    resumed = fit(model_of(), square, tmp_path, shown=("square", "other"))
    assert all(value.isfinite().all() for value in resumed.state_dict().values())


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    with pytest.raises(FloatingPointError, match="not finite: validation"):
        fit(model_of(), scripted, tmp_path, validation=lambda: [math.nan])


@pytest.fixture
def device_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Join a group that has a backend for one device and none for the CPU, as NCCL alone."""
    dist.init_process_group("meta:fake", store=FakeStore(), rank=0, world_size=2)
    # Every figure is 1, and no worker differs.
    monkeypatch.setattr(workers, "read", lambda v: [float(v.is_floating_point())] * len(v))
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        workers.summed(torch.zeros(1))
    yield torch.device("meta")
    dist.destroy_process_group()


def test_a_stage_needs_no_collective_on_the_cpu(tmp_path: Path, device_only: torch.device):
    def parts(net: nn.Module, number: int) -> Iterator[Portion]:
        loss = net(torch.ones(4, 3, device=device_only)).mean()
        yield Portion(loss, {"loss": loss.detach()})

    model = model_of().to(device_only)
    more = {"validation": lambda: [0, 1], "report": [].append}
    fit(model, parts, tmp_path, SCHEDULE, shown=["loss", "of another worker"], **more)
    assert len((tmp_path / "stage.losses.tsv").read_text().splitlines()) == 8


def test_masks_are_counted_over_workers_on_the_runs_device(device_only: torch.device):
    run = Run(recipe=debug(), config=EDGE, data="", folder=Path(), device=device_only)
    assert list(MaskLoss(run, lambda batch: None).portions(nn.Identity(), Drawn())) == []


def test_the_frames_of_all_workers_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "count", lambda: 8)
    assert frames_per_second(0.5, [0] * 256) == {"frames/s": 1024}
    assert frames_per_second(None, [0] * 256) == {}
    assert frames_per_second(0.5, 7) == {}
