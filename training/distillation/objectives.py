"""The losses of a step, by the data that they are on: photographs, named classes, masks.

Each of them declares the names of its figures. B images, h w grid, D width, L classes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.nn.network import SamClipNet
from samclip_core.nn.text_encoder import TextEncoder
from samclip_core.nn.vit import valid_mask
from training import workers
from training.data.frames import View
from training.distillation.losses import (
    clip_loss,
    dense_loss,
    name_loss,
    sam_distillation_loss,
)
from training.distillation.sampling import Drawn, Photos
from training.distillation.segmentation import Batch, Criterion, Prompts, decode, segment_step
from training.loop import Portion
from training.recipes import Run


class PhotoTeacher(Protocol):
    """A teacher that reads ``view``; returns ``dense_BDhw`` and ``pooled_BD``."""

    view: View

    def __call__(self, pixels_B3SS: Tensor, sizes_B2: Tensor, /) -> tuple[Tensor, Tensor]: ...


class PhotoTeachers(NamedTuple):
    """The CLIP teacher of photographs, and the text embeddings of the named sets' class names.

    Every vector has length 1. The text tower is there to measure the student.
    """

    clip: PhotoTeacher
    names_LD: Tensor
    text_encoder: TextEncoder | None = None


class PhotoLoss:
    """The weighted sum of L_CLIP (paper, equation 1) and of the optional loss of patches."""

    def __init__(self, run: Run, teacher: PhotoTeacher) -> None:
        self.run, self.teacher = run, teacher
        self.names = ["clip", "dense"] if run.recipe.dense_weight else ["clip"]

    def portions(self, net: SamClipNet, drawn: Drawn) -> Iterator[Portion]:
        """Yield the losses of the photographs."""
        for photos in drawn.photos:
            with autocast(self.run):
                target_BDhw, target_BD = self.teacher(*photos.view())
                _, dense_BDhw, pooled_BD, _ = net.encode(photos.pixels_B3SS, photos.sizes_B2)
            total = clip_loss(pooled_BD.float(), target_BD.float()).mean()
            losses = {"clip": total}
            if weight := self.run.recipe.dense_weight:
                losses["dense"] = patch_loss(photos, dense_BDhw, target_BDhw)
                total = total + weight * losses["dense"]
            share = len(photos.pixels_B3SS) / self.run.recipe.clip_images
            shown = {name: share * loss.detach() for name, loss in losses.items()}
            yield Portion(share * total, shown)


def patch_loss(photos: Photos, student_BDhw: Tensor, teacher_BDhw: Tensor) -> Tensor:
    """Return the loss of patches, whose maps over the frame are pooled to the coarser grid."""
    grid = min(student_BDhw.shape[-1], teacher_BDhw.shape[-1])
    student_BDhw, teacher_BDhw = (
        F.adaptive_avg_pool2d(map_BDhw.float(), grid) for map_BDhw in (student_BDhw, teacher_BDhw)
    )
    return dense_loss(student_BDhw, teacher_BDhw, _valid_cells(photos, grid))


class NameLoss:
    """The loss of Head_CLIP's patches on the label maps of the named sets."""

    names = ("name",)

    def __init__(self, run: Run, names_LD: Tensor) -> None:
        self.run, self.names_LD = run, names_LD

    def portions(self, net: SamClipNet, drawn: Drawn) -> Iterator[Portion]:
        """Yield the loss of the photographs with known classes."""
        recipe = self.run.recipe
        for named in drawn.named:
            with autocast(self.run):
                _, dense_BDhw, *_ = net.encode(named.pixels_B3SS, named.sizes_B2)
            logits_BLhw = torch.einsum("bdhw,ld->blhw", dense_BDhw.float(), self.names_LD)
            loss = name_loss(self.run.config.logit_scale * logits_BLhw, named.share_BLhw)
            share = len(named.pixels_B3SS) / recipe.named_images
            yield Portion(recipe.name_weight * share * loss, {"name": share * loss.detach()})


class MaskLoss:
    """The loss of masks; every mask of the global batch has the same weight."""

    names = ("sam",)

    def __init__(
        self, run: Run, criterion: Callable[[Batch], Criterion], weight: float = 1.0
    ) -> None:
        self.run, self.criterion, self.weight = run, criterion, weight

    def portions(self, net: SamClipNet, drawn: Drawn) -> Iterator[Portion]:
        """Yield the loss of the outlined photographs."""
        own = sum(len(batch.target_Pmm) for batch in drawn.outlined)
        total = workers.summed(torch.tensor(float(own), device=self.run.device))
        for batch in drawn.outlined:
            with autocast(self.run):
                sam_BDhw = net.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw
                loss = segment_step(net, sam_BDhw, batch, drawn.clicks, self.criterion(batch))
            share = len(batch.target_Pmm) / total
            yield Portion(self.weight * share * loss, {"sam": share * loss.detach()})


def sam_criterion(run: Run, teacher: SamClipNet) -> Callable[[Batch], Criterion]:
    """Return L_SAM against the teacher's masks for the same prompts (paper, equation 2)."""

    def criterion(batch: Batch) -> Criterion:
        with torch.no_grad():
            sam_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw

        def compare(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> Tensor:
            with torch.no_grad():
                targets = decode(teacher, sam_BDhw, batch, prompts)
            return sam_distillation_loss(logits_P4mm, iou_P4, *targets, run.recipe.dice)

        return compare

    return criterion


def autocast(run: Run) -> torch.autocast:
    """Return the context in which networks run with the recipe's precision."""
    half = run.recipe.dtype == "bfloat16"
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=half)


def _valid_cells(photos: Photos, grid: int) -> Tensor:
    """Return ``valid_Bhw`` of a grid over the frame, whose side need not be a multiple of it."""
    return valid_mask(photos.sizes_B2 * grid, grid, grid, photos.pixels_B3SS.shape[-1])
