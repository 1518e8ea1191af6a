"""One step of learning to segment: prompts for a batch of frames, masks, the loss.

Both the edge SAM teacher (against the masks that people drew) and the merge (against the
teacher's masks) take this step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samclip_core.edge import EdgePromptEncoder
from samclip_core.mask_decoder import MaskDecoder
from training.data import Frame
from training.losses import sam_loss
from training.prompts import box_of, correction, noised, random_point


@dataclass(frozen=True)
class Batch:
    """Frames with one kind of prompt: all boxes or all points, so that tokens stack."""

    pixels_B3SS: Tensor
    sizes_B2: Tensor
    target_Pmm: Tensor
    image_index_P: Tensor
    boxes_P4: Tensor | None
    points_PN2: Tensor | None
    labels_PN: Tensor | None


def make_batch(
    frames: list[Frame], prompts_per_image: int, size: int, generator: torch.Generator
) -> Batch:
    """Draw masks of each frame and a box or a point for each of them."""
    index, masks = [], []
    for i, frame in enumerate(frames):
        order = torch.randperm(len(frame.masks_Pmm), generator=generator)[:prompts_per_image]
        masks.append(torch.from_numpy(frame.masks_Pmm)[order])
        index += [i] * len(order)
    target_Pmm = torch.cat(masks)
    cell = size / target_Pmm.shape[-1]
    boxes_P4 = points_PN2 = labels_PN = None
    if torch.rand((), generator=generator) < 0.5:
        boxes_P4 = torch.stack([box_of(mask > 0.5, cell) for mask in target_Pmm])
        if torch.rand((), generator=generator) < 0.5:
            boxes_P4 = noised(boxes_P4, size, generator)
    else:
        points = [random_point(mask > 0.5, cell, generator) for mask in target_Pmm]
        points_PN2, labels_PN = torch.stack(points)[:, None], torch.ones(len(points), 1)
    return Batch(
        torch.from_numpy(np.stack([frame.pixels_3SS for frame in frames])).float(),
        torch.tensor([frame.valid for frame in frames]),
        target_Pmm,
        torch.tensor(index),
        boxes_P4,
        points_PN2,
        labels_PN,
    )


def segment_step(
    prompt_encoder: EdgePromptEncoder,
    mask_decoder: MaskDecoder,
    sam_BDhw: Tensor,
    batch: Batch,
    rounds: int,
    focal: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The loss over ``rounds`` prompts, each later one a correcting click with the last logits.

    Returns the mean loss and the logits ``P4mm`` of the first round.
    """
    pe_1Dhw = prompt_encoder.get_dense_pe()
    points_PN2, labels_PN, logits_P1mm = batch.points_PN2, batch.labels_PN, None
    cell = prompt_encoder.input_image_size[0] / batch.target_Pmm.shape[-1]
    losses, first = [], None
    for _ in range(rounds):
        points = None if points_PN2 is None or labels_PN is None else (points_PN2, labels_PN)
        sparse_PND, dense_PDhw = prompt_encoder(points, batch.boxes_P4, logits_P1mm)
        logits_P4mm, iou_P4 = mask_decoder.decode(
            sam_BDhw, pe_1Dhw, sparse_PND, dense_PDhw, batch.image_index_P
        )
        logits_P4mm, iou_P4 = logits_P4mm.float(), iou_P4.float()
        loss, best_P = sam_loss(logits_P4mm, iou_P4, batch.target_Pmm, focal)
        losses.append(loss)
        first = logits_P4mm.detach() if first is None else first
        shown_Pmm = logits_P4mm.detach()[torch.arange(len(best_P)), best_P]
        logits_P1mm = shown_Pmm[:, None]
        point_P2, label_P = correction(shown_Pmm, batch.target_Pmm, cell, generator)
        points_PN2 = _append(points_PN2, point_P2[:, None])
        labels_PN = _append(labels_PN, label_P[:, None])
    assert first is not None
    return torch.stack(losses).mean(), first


def _append(sequence: Tensor | None, item: Tensor) -> Tensor:
    return item if sequence is None else torch.cat([sequence, item], dim=1)
