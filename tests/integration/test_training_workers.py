"""Any number of workers has the same losses and weights from the same global batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from samclip_core.config import SamClipConfig
from samclip_core.io.folder import Folder
from samclip_core.nn.network import SamClipNet, build
from tests import photographs
from tests.fakes import ConstantTeacher
from tests.tiny import TINY
from training import workers
from training.distillation import stages
from training.distillation.objectives import PhotoTeachers
from training.distillation.stages import (
    head_probing,
    joint_distillation,
    resolution_adaptation,
)
from training.evaluation import parallel
from training.loop import Portion, Stage
from training.recipes import Run, SamBatch, debug
from training.schedule import Schedule, optimizer
from training.workers import check_shared

STEPS = 4
SHORT = Schedule(steps=2, rate=1e-4)


class StoppedError(Exception):
    pass


def learn(rank: int, count: int, data: Path, folder: Path) -> None:
    """Run one worker of all stages of a merge, in float32; two workers stop in between."""
    join(rank, count, folder)
    config = TINY["edge"]
    recipe = replace(
        debug(),
        dtype="float32",
        photo_sides=(config.image_size,),
        adaptation_sides=(config.image_size // 2,),
        clip_images=3,
        sam_batch=SamBatch(images=3, prompts=3, rounds=3, corrected=1.0, refined=True),
    )
    run = Run(recipe=recipe, config=config, data=str(data), folder=folder)
    teachers = PhotoTeachers(ConstantTeacher(config.text_dim), torch.ones(3, config.text_dim))
    teachers = teachers._replace(text_encoder=nn.Identity())
    schedule = Schedule(steps=STEPS, rate=1e-4, warmup=1, save_every=STEPS // 2, keep="last")
    short, measured = replace(schedule, steps=1), replace(schedule, stop_on="coco-boxes/ap=coco")

    def merge(seed: int) -> None:
        net, sam = (built(config, s) for s in (seed, 1))
        head_probing(run, net, teachers, short)
        joint_distillation(run, net, teachers, sam, measured)
        resolution_adaptation(run, net, teachers, short)
        weights_N = torch.cat([value.flatten().double() for value in net.state_dict().values()])
        assert workers.differ(weights_N) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "measure", lambda *_: shares)
        if count == 2:
            patch.setattr(workers, "report", stop)
            with pytest.raises(StoppedError):
                merge(seed=0)
        patch.setattr(workers, "report", lambda figures: None)
        merge(seed=0 if count != 2 else 5)  # a resumed run has its weights from its state
    leave()


def shares(net: SamClipNet) -> float:
    """Measure a network as a suite does, whose pictures the workers share."""
    weight = next(net.clip_head.parameters())
    return sum(parallel.shared(range(5), lambda number: number + float(weight.sum()), "pictures"))


def stop(figures: dict[str, float]) -> None:
    if figures.get("joint/step") == STEPS // 2:
        raise StoppedError


def join(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if count > 1:
        store = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def built(config: SamClipConfig, seed: int) -> SamClipNet:
    """Build a network with its initial weights; added noise would amplify rounding errors."""
    torch.manual_seed(seed)
    return build(config).eval()


def spread(function: Callable[..., None], count: int, *arguments: object) -> None:
    """Run ``function(rank, *arguments)`` in ``count`` processes, which share the imports."""
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    mp.start_processes(function, arguments, nprocs=count, start_method="forkserver")


def test_two_and_four_workers_give_the_losses_of_one(tmp_path: Path):
    """Three images give two workers unequal shares, and one of four workers none.

    The two workers are stopped in the joint stage and resumed.
    """
    photographs.write_training_sets(tmp_path / "data")
    runs, measures = [], []
    for count in (1, 2, 4):
        folder = tmp_path / f"of-{count}"
        folder.mkdir()
        spread(learn, count, count, tmp_path / "data", folder)
        names = ("head-probing", "joint", "adaptation")
        logs = [folder / f"{name}.losses.tsv" for name in names]
        runs.append([np.loadtxt(log, skiprows=1, ndmin=2) for log in logs])
        measures.append(np.loadtxt(folder / "joint.measures.tsv", skiprows=1))
    np.testing.assert_allclose(measures[1:], measures[:1] * 2, rtol=1e-4)
    assert measures[0][:, 0].tolist() == [2, 4]
    one = runs[0]
    # step, clip, dense, name, gradient_norm; the joint stage also has sam
    assert [log.shape for log in one] == [(1, 5), (STEPS, 6), (1, 5)]
    for many in runs[1:]:
        for log, expected in zip(many, one, strict=True):
            np.testing.assert_allclose(log[:, :-1], expected[:, :-1], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(log[:, -1], expected[:, -1], rtol=1e-2)
    joint = one[1]
    assert (joint[-1, 1:3] < joint[0, 1:3]).all()  # the training makes progress


def reach(rank: int, folder: Path) -> None:
    """Run one of two workers whose losses reach the first layer, one the second, none the third."""
    join(rank, 2, folder)
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
    kept = net[2].weight.detach().clone()
    x_12 = torch.tensor([[1.0, 2.0]])
    (net[0](x_12) + (net[1](x_12) if rank == 1 else 0)).sum().backward()
    workers.sum_gradients(net.parameters())
    assert net[0].weight.grad.tolist() == [[2.0, 4.0]]
    assert net[1].weight.grad.tolist() == [[1.0, 2.0]]
    assert net[2].weight.grad is None
    torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.equal(net[2].weight, kept)
    workers.share(net[2].weight.data.fill_(rank).unbind())
    assert not net[2].weight.any()
    leave()


def test_weights_that_no_loss_reached_do_not_decay_and_a_share_is_worker_0s(tmp_path: Path):
    spread(reach, 2, tmp_path)


def meet(rank: int, root: Path) -> None:
    """Join two workers, which see the same folder or each its own."""
    join(rank, 2, root)
    device = torch.device("cpu")
    for _ in range(2):  # a file of an earlier run does not count
        check_shared(Folder(root / "run"), device)
        with pytest.raises(ValueError, match=r"1 of 2 workers do not see .* that all nodes share"):
            check_shared(Folder(root / f"of-{rank}"), device)
    leave()


def test_all_workers_must_see_the_folder(tmp_path: Path):
    spread(meet, 2, tmp_path)


def begin(rank: int, root: Path) -> None:
    """Begin a stage on one of two workers, whose networks differ in all that they hold."""
    join(rank, 2, root)
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    nn.init.normal_(net.eval()[1].running_mean)
    net[1].num_batches_tracked.fill_(rank)

    def portions(net: nn.Module, _: int) -> Iterator[Portion]:
        loss = net(torch.ones(1, 2, 3, 3)).square().sum() / 2
        yield Portion(loss, {"square": loss.detach()})

    def stage(folder: Path) -> Stage[nn.Module]:
        objective = SimpleNamespace(names=["square"], portions=portions)
        learning = optimizer(SHORT, (), net.named_parameters())
        return Stage("stage", net, learning, SHORT, folder, [objective])

    fitted = stage(root / "run")
    for state in (net.state_dict(), fitted.averaged.module.state_dict()):
        assert (
            workers.differ(torch.cat([value.flatten().double() for value in state.values()])) == 0
        )
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    fitted.fit(iter)
    assert stage(root / "run").done == SHORT.steps
    if rank == 1:  # as a file system does that shows this node an older state
        (root / "of-1").mkdir()
    with pytest.raises(OSError, match="1 of 2 workers read another state than worker 0"):
        stage(root / ("run" if rank == 0 else "of-1"))
    leave()


def test_a_stage_begins_with_the_weights_and_the_step_of_worker_0(tmp_path: Path):
    (tmp_path / "run").mkdir()
    spread(begin, 2, tmp_path)


def test_the_first_worker_tells_its_figures_to_ray(monkeypatch: pytest.MonkeyPatch):
    reported, shown = [], {}
    gauge = SimpleNamespace(set=lambda value, tags: shown.update({tags["figure"]: value}))
    monkeypatch.setattr(workers.ray.train, "report", reported.append)
    monkeypatch.setattr(workers, "_gauge", lambda: gauge)
    figures = {"joint/sam": 0.5, "joint/step": 20}
    workers.report(figures)  # a single worker reports nothing
    monkeypatch.setattr(workers.dist, "is_initialized", lambda: True)
    for rank in (1, 0):
        assert shown == {}
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        workers.report(figures)
    assert (reported, shown) == ([figures, figures], figures)
