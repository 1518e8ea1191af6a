"""One training step of segmentation: prompts for a batch of frames, masks, loss.

Shared by the edge SAM teacher, which learns human outlines, and the merge, which learns the
teacher's masks. The clicks and boxes of a person are simulated (Segment Anything, appendix A).

P prompts, m m cells of a mask. Coordinates are pixels of the model frame.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samclip_core.types import BOX_MAX, BOX_MIN, OBJECT, PADDING
from training.data.frames import Frame, stacked

if TYPE_CHECKING:  # takes seconds to import, which each reader would wait for
    from samclip_core.nn.network import SamClipNet

NOISE = 0.1  # standard deviation as a share of the box's side, at most 20 pixels


@dataclass(frozen=True)
class Prompts:
    """A prompt for each mask of a batch, as tokens with SAM's labels (``samclip_core.types``).

    A box is its two corners, a point is followed by padding, as in SAM's prompt encoder: all
    prompts of a batch have the same number of tokens.
    """

    points_PN2: Tensor
    labels_PN: Tensor
    logits_P1mm: Tensor | None = None

    def clicked(self, point_P2: Tensor, label_P: Tensor) -> "Prompts":
        """Return the same prompts with one more click each."""
        points_PN2 = torch.cat([point_P2[:, None], self.points_PN2], dim=1)
        labels_PN = torch.cat([label_P[:, None], self.labels_PN], dim=1)
        return replace(self, points_PN2=points_PN2, labels_PN=labels_PN)


# Maps (logits_P4mm, iou_P4, prompts) to the loss.
Criterion = Callable[[Tensor, Tensor, Prompts], Tensor]


@dataclass(frozen=True)
class Batch:
    """Frames, their target masks, and a prompt for each mask.

    ``pixels_B3SS`` is uint8 until the batch is moved to the run's device, and float 0..255 then.
    ``chance_PR``: uniform numbers in [0, 1) that select the points of each mask's clicks, the
    first prompt's included.
    """

    pixels_B3SS: Tensor
    sizes_B2: Tensor
    target_Pmm: Tensor
    image_index_P: Tensor
    prompts: Prompts
    chance_PR: Tensor


def make_batch(
    frames: list[Frame],
    rngs: list[np.random.Generator],
    size: int,
    rounds: int,
    exact_boxes: float = 0.5,
) -> Batch:
    """Return all masks of the frames, each with a box or a point, which are equally likely.

    Prompts and up to ``rounds`` - 1 clicks are drawn from the frame's generator. In a share
    ``exact_boxes`` of the frames, the boxes are exact; in the others they are imprecise.
    """
    count_B = [len(frame.masks_Pmm) for frame in frames]
    target_Pmm = torch.cat([torch.from_numpy(frame.masks_Pmm) for frame in frames])
    pairs = list(zip(rngs, count_B, strict=True))
    chance_PR = _joined(rng.random((n, rounds)) for rng, n in pairs)
    normal_P4 = _joined(
        (rng.random() < 1 - exact_boxes) * rng.standard_normal((n, 4)) for rng, n in pairs
    )
    is_box_P = _joined(rng.random(n) < 0.5 for rng, n in pairs)
    boxes_P4 = noised(_joined(frame.boxes_P4 for frame in frames), size, normal_P4.float())
    points_P2 = points_in(target_Pmm > 0.5, size / target_Pmm.shape[-1], chance_PR[:, 0])
    return Batch(
        *stacked(frames),
        target_Pmm,
        torch.arange(len(frames)).repeat_interleave(torch.tensor(count_B)),
        first_prompts(boxes_P4, points_P2, is_box_P),
        chance_PR,
    )


def _joined(arrays: Iterable[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(arrays)))


def first_prompts(boxes_P4: Tensor, points_P2: Tensor, is_box_P: Tensor) -> Prompts:
    padded_P22 = F.pad(points_P2[:, None], (0, 0, 0, 1))
    box_2, point_2 = torch.tensor([[BOX_MIN, BOX_MAX], [OBJECT, PADDING]])
    return Prompts(
        torch.where(is_box_P[:, None, None], boxes_P4.view(-1, 2, 2), padded_P22),
        torch.where(is_box_P[:, None], box_2, point_2),
    )


def segment_step(
    net: "SamClipNet", sam_BDhw: Tensor, batch: Batch, clicks: Sequence[bool], criterion: Criterion
) -> Tensor:
    """Return the mean loss over the first prompt and one more round for each of ``clicks``.

    Each later round adds the logits of the mask before to the prompt, and a correcting click where
    ``clicks`` is true.
    """
    cell = net.prompt_encoder.input_image_size[0] / batch.target_Pmm.shape[-1]
    prompts, losses = batch.prompts, list[Tensor]()
    chances = iter(batch.chance_PR[:, 1:].unbind(1))
    for number in range(1 + len(clicks)):
        logits_P4mm, iou_P4 = decode(net, sam_BDhw, batch, prompts)
        losses.append(criterion(logits_P4mm, iou_P4, prompts))
        if number < len(clicks):
            shown_Pmm = shown(logits_P4mm.detach(), iou_P4.detach(), alone=number == 0)
            prompts = replace(prompts, logits_P1mm=shown_Pmm[:, None])
            if clicks[number]:
                click = correction(shown_Pmm, batch.target_Pmm, cell, next(chances))
                prompts = prompts.clicked(*click)
    return torch.stack(losses).mean()


def shown(logits_P4mm: Tensor, iou_P4: Tensor, alone: bool) -> Tensor:
    """Return the mask that is corrected and fed back (Segment Anything, appendix A).

    For a prompt ``alone`` that is the alternative with the highest predicted IoU, later mask 0.
    """
    if not alone:
        return logits_P4mm[:, 0]
    best_P = iou_P4[:, 1:].argmax(dim=1) + 1
    return logits_P4mm[torch.arange(len(best_P)), best_P]


def decode(
    net: "SamClipNet", sam_BDhw: Tensor, batch: Batch, prompts: Prompts
) -> tuple[Tensor, Tensor]:
    """Return float32 ``logits_P4mm`` and ``iou_P4`` for the prompts of a batch.

    Prompts are embedded in float32 also under autocast: bfloat16 would move them by pixels.
    """
    masks_P1mm, count = prompts.logits_P1mm, len(prompts.labels_PN)
    has_mask_P = prompts.points_PN2.new_full((count,), float(masks_P1mm is not None))
    if masks_P1mm is None:
        masks_P1mm = torch.zeros_like(batch.target_Pmm[:, None])
    with torch.autocast(sam_BDhw.device.type, enabled=False):
        sparse_PND, dense_PDhw = net.prompt_encoder.embed(
            prompts.points_PN2, prompts.labels_PN, masks_P1mm, has_mask_P
        )
        pe_1Dhw = net.prompt_encoder.get_dense_pe()
    logits_P4mm, iou_P4 = net.mask_decoder.decode(
        sam_BDhw, pe_1Dhw, sparse_PND, dense_PDhw, batch.image_index_P
    )
    return logits_P4mm.float(), iou_P4.float()


def noised(boxes_P4: Tensor, size: int, normal_P4: Tensor) -> Tensor:
    """Return imprecisely drawn boxes: each side moves by ``normal_P4`` times its spread."""
    sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
    spread_P4 = (NOISE * sides_P2).clamp(max=20).repeat(1, 2)
    return (boxes_P4 + normal_P4 * spread_P4).clamp(0, size)


def click_rounds(rng: np.random.Generator, clicks: int, refined: bool) -> tuple[bool, ...]:
    """Return for each round after the first prompt whether it adds a click.

    With ``refined``, two more rounds only feed the mask back: one at a random place, one last.
    """
    rounds = [True] * clicks
    if refined:
        rounds.insert(int(rng.integers(clicks + 1)), False)
        rounds.append(False)
    return tuple(rounds)


def points_in(mask_Pmm: Tensor, cell: float, chance_P: Tensor) -> Tensor:
    """Return points x, y, uniform over the cells of boolean masks.

    ``chance_P``, uniform in [0, 1), selects the cells. In an empty mask, every cell of the frame is
    equally likely.
    """
    # First the row, then the column: numbering all cells of a batch would take most of its time.
    count_Pm = mask_Pmm.count_nonzero(dim=2)
    empty_P1 = (count_Pm == 0).all(dim=1, keepdim=True)
    count_Pm = count_Pm.masked_fill(empty_P1, mask_Pmm.shape[2])
    upto_Pm = count_Pm.cumsum(dim=1)
    rank_P1 = (chance_P * upto_Pm[:, -1]).long()[:, None]
    row_P1 = torch.searchsorted(upto_Pm, rank_P1, right=True)
    rank_P1 = rank_P1 - (upto_Pm - count_Pm).gather(1, row_P1)
    cells_Pm = mask_Pmm.take_along_dim(row_P1[:, :, None], dim=1)[:, 0] | empty_P1
    column_P1 = torch.searchsorted(cells_Pm.cumsum(dim=1), rank_P1, right=True)
    return cell * (torch.cat([column_P1, row_P1], dim=1) + 0.5)


def correction(
    logits_Pmm: Tensor, target_Pmm: Tensor, cell: float, chance_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next click: a point where prediction and truth differ, and its label (int64)."""
    truth_Pmm = target_Pmm > 0.5
    points_P2 = points_in((logits_Pmm > 0) != truth_Pmm, cell, chance_P)
    column_P, row_P = (points_P2 / cell).long().unbind(1)
    labels_P = truth_Pmm[torch.arange(len(points_P2)), row_P, column_P].long()
    return points_P2, labels_P
