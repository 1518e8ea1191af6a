"""One training step of segmentation: prompts for a batch of frames, masks, loss.

Shared by the edge SAM teacher, which learns human outlines, and the merge, which learns the
teacher's masks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from samclip_core.nn.mask_decoder import MaskDecoder
from training.data.annotations import Frame
from training.data.prompts import correction, noised, point_in


@dataclass(frozen=True)
class Prompts:
    """Prompts of the same kind for all masks of a batch, so that tokens stack."""

    boxes_P4: Tensor | None = None
    points_PN2: Tensor | None = None
    labels_PN: Tensor | None = None
    logits_P1mm: Tensor | None = None

    def to(self, device: torch.device) -> "Prompts":
        """Return the same prompts on ``device``."""
        return Prompts(**_on(device, self))

    def after(self, point_P2: Tensor, label_P: Tensor, logits_Pmm: Tensor) -> "Prompts":
        """Return the same prompts with one more click each and the previous mask logits."""
        points_PN2, labels_PN = point_P2[:, None], label_P[:, None]
        if self.points_PN2 is not None and self.labels_PN is not None:
            points_PN2 = torch.cat([self.points_PN2, points_PN2], dim=1)
            labels_PN = torch.cat([self.labels_PN, labels_PN], dim=1)
        return Prompts(self.boxes_P4, points_PN2, labels_PN, logits_Pmm[:, None])


Kind = Literal["box", "point"]
# Maps (logits_P4mm, iou_P4, prompts) to the loss and each mask's best alternative.
Criterion = Callable[[Tensor, Tensor, Prompts], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Frames, their target masks, and a prompt for each mask.

    ``chance_PR``: uniform numbers in [0, 1) that select the points of each mask's clicks.
    """

    pixels_B3SS: Tensor
    sizes_B2: Tensor
    target_Pmm: Tensor
    image_index_P: Tensor
    prompts: Prompts
    chance_PR: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on ``device``."""
        return Batch(**_on(device, self))


def _on(device: torch.device, value: Prompts | Batch) -> dict[str, Any]:
    parts = vars(value)
    return {key: part if part is None else part.to(device) for key, part in parts.items()}


def make_batch(
    frames: list[Frame],
    rngs: list[np.random.Generator],
    size: int,
    kind: Kind,
    rounds: int,
) -> Batch:
    """Return all masks of the frames, each with a box or a point drawn from its frame's generator.

    In half of the frames, the boxes are imprecise.
    """
    count_B = [len(frame.masks_Pmm) for frame in frames]
    target_Pmm = torch.cat([torch.from_numpy(frame.masks_Pmm) for frame in frames])
    cell = size / target_Pmm.shape[-1]
    pairs = list(zip(rngs, count_B, strict=True))
    chance_PR = torch.from_numpy(np.concatenate([rng.random((n, rounds)) for rng, n in pairs]))
    normal_P4 = torch.from_numpy(
        np.concatenate([(rng.random() < 0.5) * rng.standard_normal((n, 4)) for rng, n in pairs])
    ).float()
    if kind == "box":
        boxes_P4 = torch.from_numpy(np.concatenate([frame.boxes_P4 for frame in frames]))
        prompts = Prompts(boxes_P4=noised(boxes_P4, size, normal_P4))
    else:
        first = zip(target_Pmm, chance_PR[:, 0].tolist(), strict=True)
        points = [point_in(mask > 0.5, cell, chance) for mask, chance in first]
        prompts = Prompts(
            points_PN2=torch.stack(points)[:, None], labels_PN=torch.ones(len(points), 1)
        )
    return Batch(
        torch.from_numpy(np.stack([frame.pixels_3SS for frame in frames])).float(),
        torch.tensor([frame.valid for frame in frames]),
        target_Pmm,
        torch.arange(len(frames)).repeat_interleave(torch.tensor(count_B)),
        prompts,
        chance_PR,
    )


def segment_step(
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    sam_BDhw: Tensor,
    batch: Batch,
    rounds: int,
    criterion: Criterion,
) -> Tensor:
    """Return the mean loss over ``rounds`` prompts: the first one, then correcting clicks."""
    cell = prompt_encoder.input_image_size[0] / batch.target_Pmm.shape[-1]
    prompts, losses = batch.prompts, list[Tensor]()
    for number in range(rounds):
        logits_P4mm, iou_P4 = decode(prompt_encoder, mask_decoder, sam_BDhw, batch, prompts)
        loss, best_P = criterion(logits_P4mm, iou_P4, prompts)
        losses.append(loss)
        if number + 1 < rounds:
            previous_Pmm = logits_P4mm.detach()[torch.arange(len(best_P)), best_P]
            chance_P = batch.chance_PR[:, number + 1]
            point_P2, label_P = correction(previous_Pmm, batch.target_Pmm, cell, chance_P)
            prompts = prompts.after(point_P2, label_P, previous_Pmm)
    return torch.stack(losses).mean()


def decode(
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    sam_BDhw: Tensor,
    batch: Batch,
    prompts: Prompts,
) -> tuple[Tensor, Tensor]:
    """Return float32 ``logits_P4mm`` and ``iou_P4`` for the prompts of a batch."""
    points = None
    if prompts.points_PN2 is not None and prompts.labels_PN is not None:
        points = prompts.points_PN2, prompts.labels_PN
    sparse_PND, dense_PDhw = prompt_encoder(points, prompts.boxes_P4, prompts.logits_P1mm)
    pe_1Dhw = prompt_encoder.get_dense_pe()
    logits_P4mm, iou_P4 = mask_decoder.decode(
        sam_BDhw, pe_1Dhw, sparse_PND, dense_PDhw, batch.image_index_P
    )
    return logits_P4mm.float(), iou_P4.float()
