from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.network import SamClipNet, build
from tests import photographs
from tests.photographs import annotated, draw, write_shard
from tests.tiny import TINY
from tests.weights import seeded as seeded_weights
from training.loop import Schedule
from training.recipes import Run, SamBatch, debug
from training.stages import (
    PhotoSampler,
    RegionSampler,
    head_probing,
    joint_distillation,
    seeded,
    train_sam_teacher,
)
from training.teachers import imagenet_classifier

SIZE = TINY["edge"].image_size
SHORT = Schedule(steps=2, rate=1e-3, warmup=1, average=0.5, save_every=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    photographs.write_training_sets(root)
    return root


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    recipe = replace(
        debug(),
        sam_teacher=SHORT,
        head_probing=SHORT,
        joint=SHORT,
        sam_batch=SamBatch(images=2, prompts=2, second_round=0.5),
    )
    return Run(recipe=recipe, data=data, folder=tmp_path)


class ConstantTeacher(nn.Module):
    """Sees the same in every photograph."""

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        pooled_D = F.normalize(torch.randn(TINY["edge"].text_dim, generator=random), dim=0)
        pooled_BD = pooled_D.expand(len(pixels_B3SS), -1)
        return pooled_BD[..., None, None].expand(-1, -1, SIZE // 32, SIZE // 32), pooled_BD


def tiny_net(seed: int) -> SamClipNet:
    return seeded_weights(lambda: build(TINY["edge"]), seed)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in net.state_dict().items() if not value.equal(before[key])}


def parameters_of(net: SamClipNet, *parts: str) -> set[str]:
    return {key for key, _ in net.named_parameters() if key.startswith(parts)}


def test_a_steps_random_numbers_depend_on_seed_stage_and_step_alone(run: Run):
    other = replace(run, recipe=replace(run.recipe, seed=1))
    keys = [(run, 0, 0), (run, 0, 1), (run, 1, 0), (other, 0, 0)]
    drawn = [
        (a.random(), torch.rand((), generator=b).item()) for a, b in [seeded(*k) for k in keys]
    ]
    again = [
        (a.random(), torch.rand((), generator=b).item()) for a, b in [seeded(*k) for k in keys]
    ]
    assert drawn == again
    assert len({number for pair in drawn for number in pair}) == 8


def test_a_batch_of_regions_is_the_same_for_the_same_seed_and_step(run: Run):
    first, again, later = (
        RegionSampler(run, SIZE).draw(seeded(run, 0, step)) for step in (3, 3, 4)
    )
    assert torch.equal(first.pixels_B3SS, again.pixels_B3SS)
    assert torch.equal(first.target_Pmm, again.target_Pmm)
    assert str(first.prompts) == str(again.prompts)
    assert not torch.equal(first.pixels_B3SS, later.pixels_B3SS)


def test_a_batch_has_the_recipes_images_and_no_more_masks_than_prompts(run: Run):
    sampler = RegionSampler(run, SIZE)
    for step in range(5):
        batch = sampler.draw(seeded(run, 0, step))
        assert batch.pixels_B3SS.shape == (2, 3, SIZE, SIZE)
        assert batch.target_Pmm.shape[1:] == (SIZE // 2, SIZE // 2)
        assert set(Counter(batch.image_index_P.tolist()).values()) <= {1, 2}
        assert set(batch.image_index_P.tolist()) == {0, 1}


def test_sets_are_drawn_as_often_as_their_weight_says(run: Run, tmp_path: Path):
    write_shard(tmp_path / "bsds500/train-0.tar", {f"b{i}": annotated(draw(i)) for i in range(3)})
    write_shard(tmp_path / "camvid/train-0.tar", {"c": photographs.outlined(draw(9))})
    blank = replace(draw(0), labels_HW=np.zeros((120, 160), np.uint8))
    write_shard(tmp_path / "camvid/train-1.tar", {"nothing": photographs.outlined(blank)})
    recipe = replace(run.recipe, region_sets=(("bsds500", 1.0), ("camvid", 2.0)))
    sampler = RegionSampler(replace(run, data=tmp_path, recipe=recipe), SIZE)
    # What has no region is never drawn.
    assert [sample.key for sample, _ in sampler.pool] == ["b0", "b1", "b2", "c"]
    assert sampler.share.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_a_correcting_click_follows_as_often_as_the_recipe_says(run: Run):
    sampler = RegionSampler(run, SIZE)
    rounds = Counter(sampler.rounds(seeded(run, 0, step)) for step in range(200))
    assert set(rounds) == {1, 2}
    assert 70 < rounds[2] < 130


def test_photographs_come_whole_batches_at_a_time(run: Run):
    sampler = PhotoSampler(run, SIZE)
    pixels_B3SS, sizes_B2 = sampler.draw(seeded(run, 1, 0))
    assert pixels_B3SS.shape == (2, 3, SIZE, SIZE)
    assert pixels_B3SS.dtype == torch.float32
    assert pixels_B3SS.max() > 100  # still 0..255
    for pixels_3SS, (height, width) in zip(pixels_B3SS, sizes_B2.tolist(), strict=True):
        assert not pixels_3SS[:, height:].any()
        assert not pixels_3SS[:, :, width:].any()
    assert torch.equal(sampler.draw(seeded(run, 1, 0))[0], pixels_B3SS)


def test_the_sam_teacher_starts_at_imagenet_and_keeps_its_batch_statistics(run: Run):
    net = tiny_net(0)
    del net.clip_head
    before = weights(net)
    train_sam_teacher(run, net)
    published = imagenet_classifier(0).state_dict()
    trunk = net.image_encoder.trunk.state_dict()
    learnt = {key for key, _ in net.image_encoder.trunk.named_parameters()}
    assert {key for key, value in trunk.items() if not value.equal(published[key])} == learnt
    others = {key for key in changed(net, before) if not key.startswith("image_encoder.trunk.")}
    assert others == parameters_of(net, "") - {f"image_encoder.trunk.{key}" for key in learnt}


def test_head_probing_changes_head_clip_and_nothing_else(run: Run):
    net = tiny_net(0)
    before = weights(net)
    head_probing(run, net, ConstantTeacher())
    assert changed(net, before) == parameters_of(net, "clip_head.")


def test_the_joint_stage_changes_all_but_the_prompt_encoder_and_the_teacher(run: Run):
    net, teacher = tiny_net(0), tiny_net(1)
    before, taught = weights(net), weights(teacher)
    joint_distillation(run, net, ConstantTeacher(), teacher)
    parts = ("image_encoder.", "clip_head.", "mask_decoder.")
    assert changed(net, before) == parameters_of(net, *parts)
    assert not changed(teacher, taught)
    assert not net.training


def test_head_clip_comes_closer_to_its_teacher(run: Run):
    schedule = Schedule(steps=12, rate=1e-2, warmup=1, average=0.0)
    recipe = replace(run.recipe, head_probing=schedule)
    head_probing(replace(run, recipe=recipe), tiny_net(0), ConstantTeacher())
    log = (run.folder / "head-probing.losses.tsv").read_text().splitlines()
    first, last = (float(line.split("\t")[1]) for line in (log[0], log[-1]))
    assert last < 0.5 * first
