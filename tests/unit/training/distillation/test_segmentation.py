from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from samclip_core.nn.network import SAM_HEAD_PARTS, SamClipNet, build
from tests.tiny import TINY
from tests.weights import seeded
from training.data.annotations import Frame
from training.distillation.losses import sam_loss
from training.distillation.segmentation import (
    Batch,
    Kind,
    Prompts,
    decode,
    make_batch,
    segment_step,
)

CONFIG = TINY["edge"]
SIZE, CELLS = CONFIG.image_size, CONFIG.image_size // 2
CELL = 2


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


def batch_of(
    given: list[Frame] | None = None, seed: int = 0, kind: Kind = "point", rounds: int = 3
) -> Batch:
    given = frames() if given is None else given
    rngs = [np.random.default_rng([seed, slot]) for slot in range(len(given))]
    return make_batch(given, rngs, SIZE, kind, rounds)


def inside(mask_mm: Tensor, x: Tensor, y: Tensor) -> bool:
    return bool(mask_mm[int(y) // CELL, int(x) // CELL] > 0.5)


def test_a_batch_has_the_frames_and_a_prompt_for_each_of_its_masks():
    given = frames()
    batch = batch_of(given)
    assert batch.pixels_B3SS.dtype == torch.float32
    assert batch.pixels_B3SS[:, 0, 0, 0].tolist() == [7, 8]
    assert batch.sizes_B2.tolist() == [[SIZE, SIZE], [50, 100]]
    assert batch.image_index_P.tolist() == [0, 0, 0, 1]
    assert {mask.numpy().tobytes() for mask in batch.target_Pmm} == {
        mask.tobytes() for frame in given for mask in frame.masks_Pmm
    }


def test_points_lie_in_their_masks():
    for seed in range(8):
        batch = batch_of(seed=seed)
        assert batch.prompts.boxes_P4 is None
        assert batch.prompts.labels_PN.tolist() == [[1.0]] * 4
        pairs = zip(batch.target_Pmm, batch.prompts.points_PN2[:, 0], strict=True)
        assert all(inside(mask_mm, *point_2) for mask_mm, point_2 in pairs)


def test_boxes_are_tight_or_drawn_by_a_hurried_hand_a_frame_at_a_time():
    tight = 0
    for seed in range(24):
        batch = batch_of(seed=seed, kind="box")
        assert batch.prompts.points_PN2 is None
        expected_P4 = torch.from_numpy(np.concatenate([frame.boxes_P4 for frame in frames()]))
        off_P4 = batch.prompts.boxes_P4 - expected_P4
        tight += not off_P4[:3].any()
        assert off_P4.abs().max() < 20
    assert 6 < tight < 18


def test_a_frames_prompts_do_not_depend_on_the_others_in_its_batch():
    """Otherwise the training would depend on how a batch is split over workers."""
    for kind in ("box", "point"):
        whole, alone = batch_of(kind=kind), batch_of(frames()[:1], kind=kind)
        for name in ("boxes_P4", "points_PN2"):
            prompts = getattr(whole.prompts, name), getattr(alone.prompts, name)
            assert prompts == (None, None) or torch.equal(prompts[0][:3], prompts[1])
        assert torch.equal(whole.chance_PR[:3], alone.chance_PR)


def test_another_click_is_added_to_what_was_asked_before():
    boxes_P4, logits_Pmm = torch.ones(3, 4), torch.randn(3, 8, 8)
    first = Prompts(boxes_P4=boxes_P4).after(torch.zeros(3, 2), torch.zeros(3), logits_Pmm)
    assert first.boxes_P4 is boxes_P4
    assert first.points_PN2.shape == (3, 1, 2)
    assert torch.equal(first.logits_P1mm[:, 0], logits_Pmm)
    second = first.after(torch.ones(3, 2), torch.ones(3), logits_Pmm + 1)
    assert second.points_PN2[0].tolist() == [[0, 0], [1, 1]]
    assert second.labels_PN[0].tolist() == [0, 1]
    assert torch.equal(second.logits_P1mm[:, 0], logits_Pmm + 1)


@pytest.mark.parametrize("seed", range(4))
def test_later_rounds_correct_the_mask_that_was_shown(net: SamClipNet, seed: int):
    batch = batch_of(seed=seed)
    seen: list[tuple[Prompts, Tensor]] = []

    def criterion(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        seen.append((prompts, logits_P4mm.detach()))
        return torch.tensor(float(len(seen))), torch.tensor([1, 2, 3, 1])

    parts = net.prompt_encoder, net.mask_decoder
    loss = segment_step(*parts, embeddings(), batch, 3, criterion)

    assert loss == 2  # the mean of 1, 2, 3
    assert len(seen) == 3
    assert seen[0][0] is batch.prompts
    for (_, logits_P4mm), (prompts, _) in pairwise(seen):
        shown_Pmm = logits_P4mm[torch.arange(4), torch.tensor([1, 2, 3, 1])]
        assert torch.equal(prompts.logits_P1mm[:, 0], shown_Pmm)
        for mask_mm, target_mm, point_2, label in zip(
            shown_Pmm,
            batch.target_Pmm,
            prompts.points_PN2[:, -1],
            prompts.labels_PN[:, -1],
            strict=True,
        ):
            x, y = (point_2 / CELL).long()
            assert (mask_mm[y, x] > 0) != (target_mm[y, x] > 0.5)
            assert label == (target_mm[y, x] > 0.5)
    before = 0 if batch.prompts.points_PN2 is None else 1
    assert seen[2][0].points_PN2.shape[1] == before + 2


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
            1,
            lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm),
        )
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sam_BDhw.grad.any()
    assert net.prompt_encoder.mask_downscaling[0].weight.grad.any()
    assert losses[-1] < 0.7 * losses[0]
