from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from tests.fakes import ConstantTeacher
from tests.tiny import TINY
from tests.weights import seeded
from training.distillation.memory import kept_bytes, largest_piece, settle_checkpointing
from training.distillation.objectives import (
    Lesson,
    MaskLoss,
    PhotoLoss,
    PhotoTeachers,
    sam_criterion,
)
from training.distillation.sampling import Kinds, Sampler
from training.recipes import Run, debug

CONFIG = TINY["vit-b"]
TEACHERS = PhotoTeachers(ConstantTeacher(CONFIG.text_dim), torch.empty(0, CONFIG.text_dim))
SIDES = (CONFIG.image_size // 2, CONFIG.image_size)


@pytest.fixture
def run(training_sets: Path) -> Run:
    recipe = replace(debug(), photo_sides=SIDES, clip_images=2, at_once=8, dense_weight=0.0)
    return Run(recipe=recipe, config=CONFIG, data=str(training_sets), folder="")


@pytest.fixture
def net() -> SamClipNet:
    return seeded(lambda: build(CONFIG), 0).eval()


def lesson(run: Run, masks: bool = False) -> Lesson:
    kinds = Kinds(photos=SIDES, views=TEACHERS.views(), outlined=masks)
    teacher = seeded(lambda: build(CONFIG, SAM_PARTS), 1).eval().requires_grad_(False)
    more = [MaskLoss(run, sam_criterion(run, teacher))] if masks else []
    return Lesson(kinds, [PhotoLoss(run, TEACHERS), *more])


def test_what_is_kept_follows_the_images_at_once_the_side_and_what_learns(
    run: Run, net: SamClipNet
):
    photos = lesson(run)
    whole = largest_piece(run, 1, photos, net)
    assert largest_piece(replace(run, recipe=replace(run.recipe, at_once=16)), 1, photos, net) == (
        2 * whole
    )
    small = Lesson(replace(photos.kinds, photos=SIDES[:1]), photos.objectives)
    assert largest_piece(run, 1, small, net) < 0.6 * whole
    net.image_encoder.requires_grad_(False)
    assert 0 < largest_piece(run, 1, photos, net) < 0.7 * whole
    assert not any(p.grad is not None for p in net.parameters())


def test_prompts_count_with_all_their_rounds(run: Run, net: SamClipNet):
    both = lesson(run, masks=True)
    sam = replace(run.recipe.sam_batch, at_once=50, prompts=8)
    few, many = (
        largest_piece(
            replace(run, recipe=replace(run.recipe, sam_batch=replace(sam, rounds=rounds))),
            2,
            both,
            net,
        )
        for rounds in (2, 6)
    )
    assert many > 1.8 * few


def test_activations_are_computed_again_only_where_they_do_not_fit(run: Run, net: SamClipNet):
    photos = lesson(run)
    needed = largest_piece(run, 1, photos, net)
    for free_bytes, expected in ((100 * needed + 2**30, False), (needed, True)):
        settle_checkpointing(run, 1, photos, net, free_bytes)
        assert net.image_encoder.checkpointing is expected
        assert net.clip_head.checkpointing is expected
    (drawn,) = [Sampler(run, 1, photos.kinds)[0].to(run.device)]
    again = kept_bytes(photos.objectives[0], net, drawn)
    net.image_encoder.checkpointing = net.clip_head.checkpointing = False
    assert again < 0.5 * kept_bytes(photos.objectives[0], net, drawn)


def test_a_network_that_cannot_compute_them_again_is_not_measured(run: Run):
    edge = seeded(lambda: build(TINY["edge"]), 0)
    nothing = Lesson(Kinds(), [])
    settle_checkpointing(run, 1, nothing, edge, 0)
    assert not hasattr(edge.image_encoder, "checkpointing")
