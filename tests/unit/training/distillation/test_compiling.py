from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.vit import RelPosAttention
from tests.fakes import ConstantTeacher
from tests.tiny import TINY
from tests.weights import seeded
from training.distillation.compiling import (
    WAYS,
    Trial,
    blocks_of,
    run_blocks_as,
    settle_compiling,
    trial_of,
)
from training.distillation.objectives import (
    Lesson,
    MaskLoss,
    PhotoLoss,
    PhotoTeachers,
    sam_criterion,
)
from training.distillation.sampling import Kinds
from training.recipes import Run, debug

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    """Restore the compiler's settings afterwards."""
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch.compiler.reset()


@pytest.fixture
def net() -> nn.Module:
    return seeded(lambda: build(TINY["vit-b"], ("image_encoder", "clip_head")), 0)


def gradients(net: nn.Module, side: int) -> list[torch.Tensor]:
    pixels_2SS = 255 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    dense_BDhw, pooled_BD = net.encode(pixels_2SS, torch.tensor([[side, side]]))[1:]
    return [*torch.autograd.grad((dense_BDhw.mean() + pooled_BD[:, 0].sum()), leaves(net))]


def leaves(net: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in net.named_parameters() if ".neck." not in name]


@pytest.mark.parametrize("way", ["compiled", "with flexible attention"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_blocks_give_the_same_gradients(net: nn.Module, way: str, backend: str):
    """On a CPU, flexible attention does not learn: such a block falls back to running as it is."""
    expected = {side: gradients(net, side) for side in (64, 128)}
    run_blocks_as(way, [net], backend)
    for side, values in expected.items():
        for found, value in zip(gradients(net, side), values, strict=True):
            torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4)
    assert (
        net.state_dict().keys()
        == build(TINY["vit-b"], ("image_encoder", "clip_head")).state_dict().keys()
    )


def test_the_blocks_of_every_encoder_are_found():
    counts = {"vit-b": 4 + 1, "pair": 2 + 2 + 6 + 2 + 3, "radio": 2 + 1 + 1}
    for kind, count in counts.items():
        with torch.device("meta"):
            net = build(TINY[kind], ("image_encoder", "clip_head"))
        assert len([*blocks_of([net])]) == count, kind


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ({"as they are": (3, 1), "compiled": (2, 1), "with flexible attention": (1, 1)}, 2),
        ({"as they are": (3, 1), "compiled": (2, 1), "with flexible attention": (1, 1.5)}, 1),
        ({"as they are": (1, 1), "compiled": (2, 1), "with flexible attention": (3, 1)}, 0),
        ({"as they are": (3, 1), "compiled": (2, torch.nan), "with flexible attention": (1, 3)}, 0),
    ],
    ids=["the fastest", "of equal ones", "none", "wrong ones"],
)
def test_the_fastest_way_with_the_same_gradient_is_chosen(
    net: nn.Module, trials: dict[str, tuple[float, float]], best: int
):
    answers = (Trial(*trials[way]) for way in trials for _ in range(2))
    way = [*trials][best]
    assert settle_compiling([net], lambda: next(answers), CPU, "eager") == way
    attentions = [one for one in net.modules() if isinstance(one, RelPosAttention)]
    assert {one.flexible for one in attentions} == {way == "with flexible attention"}
    compiled = [block._compiled_call_impl is not None for block in blocks_of([net])]
    assert set(compiled) == {way != "as they are"}


def test_a_piece_of_each_loss_is_tried_and_its_gradients_are_dropped(training_sets: Path):
    config = TINY["vit-b"]
    sides = config.image_size // 2, config.image_size
    recipe = replace(debug(), photo_sides=sides, clip_images=2, at_once=8, dense_weight=0.0)
    run = Run(recipe=recipe, config=config, data=str(training_sets), folder="")
    teachers = PhotoTeachers(ConstantTeacher(config.text_dim), torch.empty(0, config.text_dim))
    sam_teacher = seeded(lambda: build(config, SAM_PARTS), 1).requires_grad_(False)
    losses = [PhotoLoss(run, teachers), MaskLoss(run, sam_criterion(run, sam_teacher))]
    kinds = Kinds(photos=sides, views=teachers.views(), outlined=True)
    student = seeded(lambda: build(config), 0)
    both, photos = (
        trial_of(run, 2, Lesson(replace(kinds, outlined=len(some) > 1), some), student)
        for some in (losses, losses[:1])
    )
    assert settle_compiling([student, sam_teacher], both, CPU, "eager") in WAYS
    assert not any(parameter.grad is not None for parameter in student.parameters())
    assert both().norm == pytest.approx(both().norm, rel=1e-4)
    assert photos().norm != pytest.approx(both().norm, rel=1e-4)
