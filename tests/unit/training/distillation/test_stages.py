"""Each stage trains its own parts of a network, in the way that the recipe says."""

from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.nn.network import SAM_PARTS, SamClipNet, build, load_net
from tests.fakes import ConstantTeacher
from tests.tiny import TINY, make_tiny_checkpoint
from tests.weights import seeded as seeded_weights
from training.distillation import stages
from training.distillation.objectives import PhotoTeachers
from training.distillation.stages import (
    head_probing,
    joint_distillation,
    resolution_adaptation,
    train_sam_teacher,
)
from training.distillation.teachers import imagenet_classifier
from training.recipes import Run, SamBatch, debug
from training.schedule import Schedule

SIZE = TINY["edge"].image_size
TEACHERS = PhotoTeachers(
    ConstantTeacher(TINY["edge"].text_dim), F.normalize(torch.ones(3, 32), dim=-1)
)
ONE = Schedule(steps=1, rate=1e-3, warmup=1, average=0.0)


@pytest.fixture
def run(training_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(stages, "VALIDATION_STEPS", 1)
    recipe = replace(
        debug(),
        sam_batch=SamBatch(images=2, prompts=2, corrected=0.5),
        photo_sides=(SIZE,),
        adaptation_sides=(SIZE, SIZE // 2),
        dtype="float32",
    )
    return Run(recipe=recipe, config=TINY["edge"], data=str(training_sets), folder=tmp_path)


def tiny_net(seed: int) -> SamClipNet:
    return seeded_weights(lambda: build(TINY["edge"]), seed)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in net.state_dict().items() if not value.equal(before[key])}


def parameters_of(net: SamClipNet, *parts: str) -> set[str]:
    return {key for key, _ in net.named_parameters() if key.startswith(parts)}


def test_the_sam_teacher_starts_at_imagenet_and_keeps_its_batch_statistics(run: Run):
    net = tiny_net(0)
    del net.clip_head
    before = weights(net)
    train_sam_teacher(run, net, ONE)
    published = imagenet_classifier(0).state_dict()
    trunk = net.image_encoder.trunk.state_dict()
    learnt = {key for key, _ in net.image_encoder.trunk.named_parameters()}
    assert {key for key, value in trunk.items() if not value.equal(published[key])} == learnt
    others = {key for key in changed(net, before) if not key.startswith("image_encoder.trunk.")}
    rest = parameters_of(net, "") - {f"image_encoder.trunk.{key}" for key in learnt}
    # Of the three alternatives of a mask only the best one learns.
    alternatives = parameters_of(net, "mask_decoder.output_hypernetworks_mlps.")
    assert rest - alternatives <= others <= rest


@pytest.mark.parametrize("stage", [head_probing, resolution_adaptation])
def test_head_probing_and_adaptation_change_head_clip_and_nothing_else(run: Run, stage):
    net = tiny_net(0)
    before = weights(net)
    stage(run, net, TEACHERS, ONE)
    assert changed(net, before) == parameters_of(net, "clip_head.")


def test_the_joint_stage_changes_all_but_the_prompt_encoder_and_the_teacher(run: Run):
    net, teacher = tiny_net(0), tiny_net(1)
    before, taught = weights(net), weights(teacher)
    joint_distillation(run, net, TEACHERS, teacher, ONE)
    parts = ("image_encoder.", "clip_head.", "mask_decoder.")
    assert changed(net, before) == parameters_of(net, *parts)
    assert not changed(teacher, taught)
    assert not net.training


@pytest.mark.parametrize("encoder_rate", [0.0, 0.1])
def test_the_sam_teacher_goes_on_from_a_checkpoint_but_for_a_frozen_trunk(
    run: Run, tmp_path: Path, encoder_rate: float
):
    start = make_tiny_checkpoint(tmp_path / "start")
    net = tiny_net(5)
    del net.clip_head
    nothing = replace(ONE, rate=0.0, weight_decay=0.0, encoder_rate=encoder_rate)
    train_sam_teacher(replace(run, start=str(start)), net, nothing)
    expected = load_net(start, SAM_PARTS).state_dict()
    if not encoder_rate:
        published = imagenet_classifier(0).state_dict()
        trunk = net.image_encoder.trunk.state_dict()
        expected |= {f"image_encoder.trunk.{key}": published[key] for key in trunk}
    assert not changed(net, expected)


@pytest.mark.parametrize(("kind", "blocks"), [("vit-b", 4 + 1), ("pair", 15), ("radio", 4)])
def test_a_recipe_compiles_the_blocks_and_keeps_or_computes_activations(
    kind: str, blocks: int, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda block, dynamic: compiled.append(block))
    with torch.device("meta"):
        net, teacher = (build(TINY[kind], ("image_encoder", "clip_head")) for _ in range(2))
    able = [module for module in net.modules() if hasattr(module, "checkpointing")]
    stages.prepare(replace(debug(), checkpointing=True), net, [teacher])
    assert not compiled
    assert all(module.checkpointing for module in able)
    with torch._dynamo.config.patch(suppress_errors=False):
        stages.prepare(replace(debug(), compile=True), net, [teacher])
    assert len(compiled) == 2 * blocks
    assert not any(module.checkpointing for module in able)


def test_compiled_blocks_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch):
    net = seeded_weights(lambda: build(TINY["vit-b"], ("image_encoder", "clip_head")), 0)
    pixels_13SS = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def gradients() -> list[Tensor]:
        dense_BDhw, pooled_BD = net.encode(pixels_13SS, torch.tensor([[64, 64]]))[1:3]
        learnt = [p for name, p in net.named_parameters() if ".neck." not in name]
        return [*torch.autograd.grad(dense_BDhw.mean() + pooled_BD[:, 0].sum(), learnt)]

    expected = gradients()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    with torch._dynamo.config.patch(suppress_errors=False):
        stages.prepare(replace(debug(), compile=True), net, [])
        torch.testing.assert_close(gradients(), expected, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


def test_a_loss_without_weight_is_not_computed(run: Run):
    """In naive distillation, the decoder gets no gradient, and the encoder only CLIP's."""
    net = tiny_net(0)
    before = weights(net)
    losses = ("sam", "dense", "name")
    recipe = replace(run.recipe, **{f"{loss}_weight": 0.0 for loss in losses})
    joint_distillation(replace(run, recipe=recipe), net, TEACHERS, tiny_net(1), ONE)
    names, _ = (run.folder / "joint.losses.tsv").read_text().splitlines()
    assert names == "step\tclip\tgradient_norm"
    assert not any(key.startswith("mask_decoder.") for key in changed(net, before))
    assert any(key.startswith("image_encoder.trunk.") for key in changed(net, before))
