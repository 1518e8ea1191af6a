"""Two workers have the same losses as one from the same global batch."""

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
from samclip_core.nn.network import SamClipNet, build
from tests import photographs
from tests.fakes import ConstantTeacher
from tests.tiny import TINY
from training import workers
from training.distillation.stages import ClipTeachers, joint_distillation
from training.loop import Schedule
from training.recipes import Run, SamBatch, debug

STEPS = 20


def learn(rank: int, count: int, data: Path, folder: Path) -> None:
    """Run one worker of a joint stage, in float32."""
    torch.set_num_threads(1)
    if count > 1:
        store = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    config = TINY["edge"]
    recipe = replace(
        debug(),
        dtype="float32",
        photo_sides=(config.image_size,),
        clip_images=3,
        # No correcting clicks: a rounding error at the edge of a mask would move them.
        sam_batch=SamBatch(images=3, prompts=3, corrected=0.0),
    )
    run = Run(recipe=recipe, config=config, data=str(data), folder=folder)
    net, sam = (built(config, seed) for seed in (0, 1))
    schedule = Schedule(steps=STEPS, rate=1e-4, warmup=1, save_every=STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "report", lambda figures: None)
        teachers = ClipTeachers(ConstantTeacher(config.text_dim), torch.ones(3, config.text_dim))
        joint_distillation(run, net, teachers, sam, schedule)
    if count > 1:
        dist.destroy_process_group()


def built(config: SamClipConfig, seed: int) -> SamClipNet:
    """Build a network with its initial weights; added noise would amplify rounding errors."""
    torch.manual_seed(seed)
    return build(config).eval()


def test_two_workers_give_the_losses_of_one(tmp_path: Path):
    """Three images for two workers give them unequal shares."""
    photographs.write_training_sets(tmp_path / "data")
    losses = []
    for count in (1, 2):
        folder = tmp_path / f"of-{count}"
        folder.mkdir()
        mp.spawn(learn, (count, tmp_path / "data", folder), nprocs=count)
        losses.append(np.loadtxt(folder / "joint.losses.tsv", skiprows=1))
    one, two = losses
    assert one.shape == (STEPS, 6)  # step, clip, dense, embedding, name, sam
    recipe = debug()
    weights = [1, recipe.dense_weight, recipe.embedding_weight, recipe.name_weight]
    weights.append(recipe.sam_weight)
    np.testing.assert_allclose(two[:, 1:] @ weights, one[:, 1:] @ weights, rtol=0, atol=1e-4)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    assert (one[-1, 1:4] < one[0, 1:4]).all()  # the training makes progress


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


def test_alone_nothing_is_summed_and_every_slot_is_ones_own():
    assert (workers.rank(), workers.count()) == (0, 1)
    assert list(workers.own(5)) == [0, 1, 2, 3, 4]
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(workers.summed(values), values)
    linear = nn.Linear(2, 1)
    linear(torch.ones(1, 2)).sum().backward()
    before = linear.weight.grad.clone()
    workers.sum_gradients(linear.parameters())
    assert torch.equal(linear.weight.grad, before)


def test_alone_figures_are_their_own_sums():
    assert workers.summed_by_name({"sam": 0.5}) == {"sam": 0.5}
    assert workers.summed_by_name({}) == {}
