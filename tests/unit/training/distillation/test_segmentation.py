from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from samclip_core.nn.edge import EdgePromptEncoder
from samclip_core.nn.network import SAM_HEAD_PARTS, SamClipNet, build
from samclip_core.nn.sam_head import PromptEncoder
from samclip_core.types import BOX_MAX, BOX_MIN, OBJECT, PADDING
from tests.tiny import TINY
from tests.weights import seeded
from training.data.frames import Frame
from training.distillation.losses import sam_loss
from training.distillation.segmentation import (
    Batch,
    Prompts,
    decode,
    first_prompts,
    make_batch,
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


def test_boxes_are_tight_or_drawn_by_a_hurried_hand_a_frame_at_a_time():
    expected_P4 = torch.from_numpy(np.concatenate([frame.boxes_P4 for frame in frames()]))
    tight = boxed = 0
    for seed in range(40):
        prompts = batch_of(seed=seed).prompts
        is_box_P = prompts.labels_PN[:, 0] == BOX_MIN
        is_box_P[3] = False  # of the other frame
        off_P4 = prompts.points_PN2.flatten(1)[is_box_P] - expected_P4[is_box_P]
        boxed += bool(is_box_P.any())
        tight += bool(is_box_P.any() and not off_P4.any())
        assert off_P4.numel() == 0 or off_P4.abs().max() < 20
    assert 0.25 < tight / boxed < 0.75


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

    parts = net.prompt_encoder, net.mask_decoder
    loss = segment_step(*parts, embeddings(), batch, (True, True, False), criterion)

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

    encoder, batch = kind(*arguments), batch_of()
    prompts = replace(batch.prompts, logits_P1mm=torch.randn(4, 1, 32, 32))
    with torch.no_grad():
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                decode(encoder, SimpleNamespace(decode=decoder), embeddings(), batch, prompts)
    for exact, under_autocast in zip(*seen, strict=True):
        assert under_autocast.dtype == torch.float32
        assert torch.equal(exact, under_autocast)


def test_every_mask_reads_the_embedding_of_its_own_image(net: SamClipNet):
    batch, sam_BDhw = batch_of(), embeddings()
    with torch.no_grad():
        both, _ = decode(net.prompt_encoder, net.mask_decoder, sam_BDhw, batch, batch.prompts)
        sam_BDhw[1] = 0
        changed, _ = decode(net.prompt_encoder, net.mask_decoder, sam_BDhw, batch, batch.prompts)
    assert torch.equal(both[:3], changed[:3])
    assert not torch.equal(both[3], changed[3])


def test_masks_have_the_targets_resolution_and_full_precision(net: SamClipNet):
    batch = batch_of()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits_P4mm, iou_P4 = decode(
            net.prompt_encoder, net.mask_decoder, embeddings(), batch, batch.prompts
        )
    assert logits_P4mm.shape == (4, 4, CELLS, CELLS)
    assert iou_P4.shape == (4, 4)
    assert logits_P4mm.dtype == iou_P4.dtype == torch.float32


def test_steps_teach_the_heads_to_answer_the_same_prompts():
    """The gradient reaches the embedding and both heads, and the loss decreases."""
    net = seeded(lambda: build(CONFIG, SAM_HEAD_PARTS), 0)
    sam_BDhw = embeddings().requires_grad_()
    batch = batch_of()
    batch = replace(batch, target_Pmm=(batch.target_Pmm > 0.5).float())
    optimiser = torch.optim.AdamW([sam_BDhw, *net.parameters()], lr=1e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = segment_step(
            net.prompt_encoder,
            net.mask_decoder,
            sam_BDhw,
            batch,
            (),
            lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm),
        )
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sam_BDhw.grad.any()
    assert net.prompt_encoder.mask_downscaling[0].weight.grad.any()
    assert losses[-1] < 0.7 * losses[0]
