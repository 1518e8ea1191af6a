"""Prompts of a step are drawn as SAM's are, corrected where the mask is wrong, and learnt from."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from samclip_core.families.edge.network import EdgePromptEncoder
from samclip_core.nn.network import SAM_HEAD_PARTS, SamClipNet, build
from samclip_core.nn.sam_head import PromptEncoder
from samclip_core.types import BOX_MAX, BOX_MIN, OBJECT, PADDING
from tests.tiny import TINY
from tests.weights import seeded
from training.data.frames import Frame
from training.distillation.segmentation import (
    Batch,
    Prompts,
    click_rounds,
    correction,
    decode,
    first_prompts,
    make_batch,
    noised,
    points_in,
    segment_step,
)

CONFIG = TINY["edge"]
SIZE, CELLS = CONFIG.image_size, CONFIG.image_size // 2
CELL = 2
BOX, POINT = [BOX_MIN, BOX_MAX], [OBJECT, PADDING]


@pytest.fixture(scope="module")
def net() -> SamClipNet:
    return seeded(lambda: build(CONFIG, SAM_HEAD_PARTS), 0)


def frames() -> list[Frame]:
    """Return two frames with three masks and one: different rectangles."""
    masks_Pmm = np.zeros((4, CELLS, CELLS), np.float32)
    boxes_P4 = np.zeros((4, 4), np.float32)
    for place, mask_mm in enumerate(masks_Pmm):
        mask_mm[4 + place : 20 + 2 * place, 8 * place : 30] = 0.8
        boxes_P4[place] = CELL * np.array([8 * place, 4 + place, 30, 20 + 2 * place])
    pixels_3SS = np.full((3, SIZE, SIZE), 7, np.uint8)
    return [
        Frame(pixels_3SS, masks_Pmm[:3], boxes_P4[:3], (SIZE, SIZE)),
        Frame(pixels_3SS + 1, masks_Pmm[3:], boxes_P4[3:], (50, 100)),
    ]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(images: int = 2) -> Tensor:
    return torch.randn(images, CONFIG.embed_dim, CONFIG.grid, CONFIG.grid, generator=generator())


def batch_of(given: list[Frame] | None = None, seed: int = 0, rounds: int = 3) -> Batch:
    given = frames() if given is None else given
    rngs = [np.random.default_rng([seed, slot]) for slot in range(len(given))]
    return make_batch(given, rngs, SIZE, rounds)


def inside(mask_mm: Tensor, x: Tensor, y: Tensor) -> bool:
    return bool(mask_mm[int(y) // CELL, int(x) // CELL] > 0.5)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})]
)
def test_boxes_are_exact_in_a_share_of_the_frames(share: float, expected: set[bool]):
    frame = frames()[0]
    exact = set()
    for seed in range(20):
        prompts = make_batch([frame], [np.random.default_rng(seed)], SIZE, 1, share).prompts
        boxes = prompts.labels_PN[:, 0] == BOX_MIN
        truth_P22 = torch.from_numpy(frame.boxes_P4).view(-1, 2, 2)[boxes]
        if len(truth_P22):
            exact.add(torch.equal(prompts.points_PN2[boxes], truth_P22))
    assert exact == expected


def test_a_batch_has_the_frames_and_a_prompt_for_each_of_its_masks():
    given = frames()
    batch = batch_of(given)
    assert batch.pixels_B3SS.dtype == torch.uint8
    assert batch.pixels_B3SS[:, 0, 0, 0].tolist() == [7, 8]
    assert batch.sizes_B2.tolist() == [[SIZE, SIZE], [50, 100]]
    assert batch.image_index_P.tolist() == [0, 0, 0, 1]
    assert {mask.numpy().tobytes() for mask in batch.target_Pmm} == {
        mask.tobytes() for frame in given for mask in frame.masks_Pmm
    }


def test_half_of_the_masks_get_a_point_inside_and_half_a_box():
    kinds: list[list[int]] = []
    for seed in range(30):
        batch = batch_of(seed=seed)
        kinds += batch.prompts.labels_PN.tolist()
        pairs = zip(batch.target_Pmm, batch.prompts.points_PN2, kinds[-4:], strict=True)
        for mask_mm, points_N2, labels in pairs:
            assert labels != POINT or inside(mask_mm, *points_N2[0])
    assert 45 < kinds.count(BOX) < 75
    assert kinds.count(BOX) + kinds.count(POINT) == 120
    mixed = [len({tuple(kind) for kind in kinds[i : i + 3]}) == 2 for i in range(0, 120, 4)]
    assert any(mixed)  # also within a frame


def test_a_frames_prompts_do_not_depend_on_the_others_in_its_batch():
    """Otherwise the training would depend on how a batch is split over workers."""
    whole, alone = batch_of(), batch_of(frames()[:1])
    assert torch.equal(whole.prompts.points_PN2[:3], alone.prompts.points_PN2)
    assert torch.equal(whole.prompts.labels_PN[:3], alone.prompts.labels_PN)
    assert torch.equal(whole.chance_PR[:3], alone.chance_PR)


def test_boxes_and_points_in_one_batch_are_embedded_as_sam_embeds_them_one_by_one():
    """Also after clicks and with the mask before: SAM pads points, and boxes not."""
    torch.manual_seed(0)
    ours = PromptEncoder(32, (8, 8), (128, 128), 16)
    boxes_P4, points_P2 = 128 * torch.rand(2, 4), 128 * torch.rand(2, 2)
    prompts = first_prompts(boxes_P4, points_P2, torch.tensor([True, False]))
    click_P2, label_P = 128 * torch.rand(2, 2), torch.tensor([0, 1])
    asked = [(None, boxes_P4[:1]), ((points_P2[1:, None], torch.ones(1, 1)), None)]
    asked_clicked = [
        ((click_P2[:1, None], label_P[:1, None]), boxes_P4[:1]),
        ((torch.stack([click_P2[1:], points_P2[1:]], 1), torch.ones(1, 2)), None),
    ]
    logits_P1mm = torch.randn(2, 1, 32, 32)
    no_mask = torch.zeros_like(logits_P1mm), torch.zeros(2)
    for given, masks, sam in (
        (prompts, no_mask, asked),
        (prompts.clicked(click_P2, label_P), (logits_P1mm, torch.ones(2)), asked_clicked),
    ):
        sparse_PND, dense_PDhw = ours.embed(given.points_PN2, given.labels_PN, *masks)
        for p, (points, boxes) in enumerate(sam):
            mask = masks[0][p : p + 1] if masks[1].any() else None
            sparse_1ND, dense_1Dhw = ours.forward(points, boxes, mask)
            torch.testing.assert_close(sparse_PND[p], sparse_1ND[0])
            torch.testing.assert_close(dense_PDhw[p], dense_1Dhw[0])


@pytest.mark.parametrize("seed", range(4))
def test_later_rounds_correct_the_mask_that_was_shown(net: SamClipNet, seed: int):
    """The best alternative by the predicted IoU, then mask 0; the last round adds no click."""
    batch = batch_of(seed=seed)
    seen: list[tuple[Prompts, Tensor, Tensor]] = []

    def criterion(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> Tensor:
        seen.append((prompts, logits_P4mm.detach(), iou_P4.detach()))
        return torch.tensor(float(len(seen)))

    loss = segment_step(net, embeddings(), batch, (True, True, False), criterion)

    assert loss == 2.5  # the mean of 1, 2, 3, 4
    assert seen[0][0] is batch.prompts
    for number, ((_, logits_P4mm, iou_P4), (prompts, *_)) in enumerate(pairwise(seen)):
        best_P = iou_P4[:, 1:].argmax(dim=1) + 1 if number == 0 else torch.zeros(4).long()
        shown_Pmm = logits_P4mm[torch.arange(4), best_P]
        assert torch.equal(prompts.logits_P1mm[:, 0], shown_Pmm)
        if number == 2:
            assert prompts.points_PN2 is seen[2][0].points_PN2
            continue
        for mask_mm, target_mm, point_2, label in zip(
            shown_Pmm,
            batch.target_Pmm,
            prompts.points_PN2[:, 0],
            prompts.labels_PN[:, 0],
            strict=True,
        ):
            x, y = (point_2 / CELL).long()
            assert (mask_mm[y, x] > 0) != (target_mm[y, x] > 0.5)
            assert label == (target_mm[y, x] > 0.5)
    assert seen[3][0].points_PN2.shape[1] == 4  # two clicks and the first prompt's two tokens


@pytest.mark.parametrize("kind", [EdgePromptEncoder, PromptEncoder])
def test_prompts_are_embedded_in_float32_whatever_the_precision_of_the_run(kind: type):
    torch.manual_seed(0)
    arguments = (32, 8, 128) if kind is EdgePromptEncoder else (32, (8, 8), (128, 128), 16)
    seen: list[tuple[Tensor, ...]] = []

    def decoder(_: Tensor, *embedded: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(embedded[:3])  # positions, sparse and dense prompts
        return torch.zeros(4, 4, 1, 1), torch.zeros(4, 4)

    heads = SimpleNamespace(
        prompt_encoder=kind(*arguments), mask_decoder=SimpleNamespace(decode=decoder)
    )
    batch = batch_of()
    prompts = replace(batch.prompts, logits_P1mm=torch.randn(4, 1, 32, 32))
    with torch.no_grad():
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                decode(heads, embeddings(), batch, prompts)
    for exact, under_autocast in zip(*seen, strict=True):
        assert under_autocast.dtype == torch.float32
        assert torch.equal(exact, under_autocast)


def test_every_mask_reads_the_embedding_of_its_own_image(net: SamClipNet):
    batch, sam_BDhw = batch_of(), embeddings()
    with torch.no_grad():
        both, _ = decode(net, sam_BDhw, batch, batch.prompts)
        sam_BDhw[1] = 0
        changed, _ = decode(net, sam_BDhw, batch, batch.prompts)
    assert torch.equal(both[:3], changed[:3])
    assert not torch.equal(both[3], changed[3])


def two_parts() -> torch.Tensor:
    mask_mm = torch.zeros(12, 16, dtype=torch.bool)
    mask_mm[2:5, 3:10] = True
    mask_mm[8, 12] = True
    return mask_mm


def test_a_hand_misses_a_box_by_a_tenth_of_its_side_but_never_far():
    boxes_P4 = torch.tensor([[100.0, 150.0, 200.0, 250.0], [0.0, 0.0, 1000.0, 1000.0]])
    many_P4 = boxes_P4[:, None].expand(2, 4000, 4).reshape(-1, 4)
    off_2N4 = (
        noised(many_P4, 10_000, torch.randn(many_P4.shape, generator=generator())) - many_P4
    ).view(2, 4000, 4)
    inside_2N4 = off_2N4[:, :, 2:]  # the corner that the frame does not clip
    assert inside_2N4.mean(dim=(1, 2)).abs().max() < 1
    torch.testing.assert_close(
        inside_2N4.std(dim=(1, 2)), torch.tensor([10.0, 20.0]), rtol=0.05, atol=0
    )


def test_chances_select_every_cell_of_the_mask_equally_often():
    mask_Pmm = two_parts().expand(2200, -1, -1)
    points_P2 = points_in(mask_Pmm, 4.0, (torch.arange(2200, dtype=torch.float64) + 0.5) / 2200)
    assert (points_P2 % 4.0 == 4.0 / 2).all()
    column_P, row_P = (points_P2 / 4.0).long().unbind(1)
    hits_mm = torch.zeros(12, 16)
    hits_mm.index_put_((row_P, column_P), torch.ones(2200), accumulate=True)
    assert torch.equal(hits_mm, two_parts() * 100.0)  # 22 cells


def test_the_ends_of_chance_are_inside():
    ends_P = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    points_P2 = points_in(two_parts().expand(2, -1, -1), 1.0, ends_P)
    assert points_P2.tolist() == [[3.5, 2.5], [12.5, 8.5]]


def test_where_there_is_no_mask_a_point_may_be_anywhere():
    nothing_Pmm = torch.zeros(6, 2, 3, dtype=torch.bool)
    points_P2 = points_in(nothing_Pmm, 2.0, torch.arange(6) / 6 + 0.01)
    assert {(x, y) for x, y in points_P2.tolist()} == {(x, y) for x in (1, 3, 5) for y in (1, 3)}


def test_two_rounds_of_eleven_only_feed_the_mask_back_one_of_them_last():
    """As in SAM's training: a first prompt, eight clicks, two rounds without a click."""
    places = set()
    for seed in range(60):
        rounds = click_rounds(np.random.default_rng(seed), 8, refined=True)
        assert (len(rounds), sum(rounds), rounds[-1]) == (10, 8, False)
        places.add(rounds.index(False))
    assert places == set(range(9))
    assert click_rounds(np.random.default_rng(0), 3, refined=False) == (True, True, True)


@pytest.mark.parametrize("label", [0.0, 1.0, None])
def test_a_correction_is_a_click_where_the_answer_is_wrong(label: float | None):
    """A false positive gets a negative click, a false negative a positive click.

    A right answer is confirmed by a click anywhere.
    """
    target_mm = two_parts()
    wrong_mm = torch.zeros_like(target_mm)
    wrong_mm[3, 3:7] = label == 1
    wrong_mm[10, 1:4] = label == 0
    logits_Pmm = torch.where(target_mm ^ wrong_mm, 1.0, -1.0).expand(100, -1, -1)
    target_Pmm = target_mm.float().expand(100, -1, -1)
    points_P2, labels_P = correction(
        logits_Pmm, target_Pmm, 4.0, torch.rand(100, generator=generator())
    )
    column_P, row_P = (points_P2 / 4.0).long().unbind(1)
    assert torch.equal(labels_P == 1, target_mm[row_P, column_P])
    assert label is None or wrong_mm[row_P, column_P].all()
