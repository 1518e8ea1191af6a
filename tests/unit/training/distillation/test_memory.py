from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from tests.fakes import ConstantTeacher
from tests.tiny import TINY
from tests.weights import seeded
from training import workers
from training.distillation import memory
from training.distillation.memory import kept_bytes, largest_piece, settle_checkpointing
from training.distillation.objectives import (
    Lesson,
    MaskLoss,
    PhotoLoss,
    PhotoTeachers,
    sam_criterion,
)
from training.distillation.sampling import Kinds, Sampler
from training.distillation.stages import head_probing
from training.recipes import Run, debug
from training.schedule import Schedule

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


def of(run: Run, **changes: object) -> Run:
    return replace(run, recipe=replace(run.recipe, **changes))


def test_what_is_kept_is_that_of_the_largest_piece(run: Run, net: SamClipNet):
    photos = lesson(run)
    for images, at_once, largest in ((8, 8, 8), (5, 8, 5), (9, 3, 3), (1, 8, 1)):
        several = of(run, clip_images=images, at_once=at_once)
        kinds = replace(photos.kinds, photos=SIDES[1:])
        drawn = Sampler(of(run, clip_images=largest, at_once=largest), 1, kinds)[0].to(run.device)
        expected = kept_bytes(photos.objectives[0], net, drawn)
        assert largest_piece(several, 1, photos, net) == expected


def test_a_worker_counts_only_its_share_of_a_step(
    run: Run, net: SamClipNet, monkeypatch: pytest.MonkeyPatch
):
    alone = largest_piece(of(run, clip_images=2), 1, lesson(run), net)
    monkeypatch.setattr(workers, "count", lambda: 4)
    assert largest_piece(of(run, clip_images=7), 1, lesson(run), net) == alone


def test_what_is_kept_follows_the_side_and_what_learns(run: Run, net: SamClipNet):
    run = of(run, clip_images=8)
    photos = lesson(run)
    whole = largest_piece(run, 1, photos, net)
    small = Lesson(replace(photos.kinds, photos=SIDES[:1]), photos.objectives)
    assert largest_piece(run, 1, small, net) < 0.6 * whole
    net.image_encoder.requires_grad_(False)
    assert 0 < largest_piece(run, 1, photos, net) < 0.7 * whole
    assert not any(p.grad is not None for p in net.parameters())


def test_prompts_count_with_all_their_rounds_and_the_image_once(run: Run, net: SamClipNet):
    both = lesson(run, masks=True)
    sam = replace(run.recipe.sam_batch, images=8, at_once=8)

    def needed(**changes: int) -> float:
        return largest_piece(of(run, sam_batch=replace(sam, **changes)), 2, both, net)

    assert needed(prompts=20, rounds=6) > 1.8 * needed(prompts=20, rounds=2)
    twenty, forty, sixty = (needed(prompts=prompts) for prompts in (20, 40, 60))
    assert sixty - forty == forty - twenty
    assert twenty > 1.05 * (forty - twenty)  # the image's own activations


def test_a_piece_that_does_not_fit_when_it_is_measured_is_computed_again(
    run: Run, net: SamClipNet, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def full(objective: object, *_: object) -> int:
        asked.append(type(objective))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(memory, "kept_bytes", full)
    settle_checkpointing(run, 2, lesson(run, masks=True), net, 2**40)
    assert net.image_encoder.checkpointing
    assert asked == [PhotoLoss, MaskLoss]  # other workers wait for the latter's sum of masks


def test_memory_that_an_earlier_stage_has_left_in_the_cache_is_free(
    monkeypatch: pytest.MonkeyPatch,
):
    left = [60]
    monkeypatch.setattr(torch.cuda, "empty_cache", left.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 - sum(left), 80))
    assert memory.free_bytes(torch.device("cuda")) == 80


def test_activations_are_computed_again_only_where_they_do_not_fit(run: Run, net: SamClipNet):
    photos = lesson(run)
    needed = largest_piece(run, 1, photos, net)
    for free, expected in ((100 * needed + 2**30, False), (needed, True)):
        settle_checkpointing(run, 1, photos, net, free)
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


def test_on_a_cpu_activations_are_computed_again(run: Run, net: SamClipNet, tmp_path: Path):
    step = Schedule(steps=1, rate=1e-3)
    head_probing(replace(of(run, name_weight=0.0), folder=tmp_path), net, TEACHERS, step)
    assert net.image_encoder.checkpointing
    assert net.clip_head.checkpointing
