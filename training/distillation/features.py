"""Losses on the feature maps of photographs: CLIP's patches, SAM's embedding, a dense teacher's.

B images, h w grid, D width, N cells.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.nn.encoder import valid_mask
from samclip_core.nn.network import SamClipNet
from training import workers
from training.distillation.dense import DenseHead, DenseTeacher
from training.distillation.losses import dense_loss, embedding_loss
from training.distillation.sampling import Kinds, Photos, Sampler
from training.distillation.standardise import PhiS
from training.recipes import Run

STANDARDISED_STEPS = 4  # steps of photographs to fit the standardisation of a teacher's features
Maps = Callable[[Tensor, Tensor], Tensor]  # (pixels_B3SS, sizes_B2) to BDhw


def autocast(run: Run) -> torch.autocast:
    """Return the context in which networks run with the recipe's precision."""
    half = run.recipe.dtype == "bfloat16"
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=half)


def patch_loss(photos: Photos, dense_BDhw: Tensor, target_BDhw: Tensor) -> Tensor:
    """Return the cosine loss of CLIP's patches on the coarser of both grids."""
    return dense_loss(*_on_coarser_grid(photos, dense_BDhw, target_BDhw))


def _on_coarser_grid(photos: Photos, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two maps over the frame, pooled to the coarser grid of both, and its valid cells."""
    grid = min(map_BDhw.shape[-1] for map_BDhw in maps)
    student_BDhw, teacher_BDhw = (F.adaptive_avg_pool2d(map_BDhw, grid) for map_BDhw in maps)
    return student_BDhw, teacher_BDhw, _valid_cells(photos, grid)


def _valid_cells(photos: Photos, grid: int) -> Tensor:
    """Return ``valid_Bhw`` of a grid over the frame, whose side need not be a multiple of it."""
    return valid_mask(photos.sizes_B2 * grid, grid, grid, photos.pixels_B3SS.shape[-1])


def fit_standard(run: Run, stage: int, teacher: Maps) -> PhiS:
    """Fit PHI-S to a teacher's features of a few steps of photographs, equal on all workers.

    It is fitted once per run, because axes may come out differently each time: the sign of an
    eigenvector is arbitrary.
    """

    def features() -> Iterator[Tensor]:
        sampler = Sampler(run, stage, Kinds(photos=run.recipe.photo_sides), whole=True)
        for step in range(STANDARDISED_STEPS):
            for photos in sampler[step].to(run.device).photos:
                target_BDhw = _target(run, teacher, photos)
                valid_Bhw = _valid_cells(photos, target_BDhw.shape[-1])
                yield target_BDhw.permute(0, 2, 3, 1)[valid_Bhw]

    standard = PhiS.fit(features())
    workers.share(standard.buffers())
    return standard


def _target(run: Run, teacher: Maps, photos: Photos) -> Tensor:
    with torch.no_grad(), autocast(run):
        return teacher(photos.pixels_B3SS, photos.sizes_B2).float()


def embedding_criterion(
    run: Run, stage: int, teacher: SamClipNet
) -> Callable[[Photos, Tensor], Tensor]:
    """Return the loss on the teacher's standardised SAM embedding of photographs."""

    def embedding(pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        sam_BDhw: Tensor = teacher.image_encoder(pixels_B3SS, sizes_B2).sam_BDhw
        return sam_BDhw

    standard = fit_standard(run, stage, embedding)

    def loss(photos: Photos, sam_BDhw: Tensor) -> Tensor:
        target_BDhw = standard(_target(run, embedding, photos))
        valid_Bhw = _valid_cells(photos, target_BDhw.shape[-1])
        return embedding_loss(standard(sam_BDhw.float()), target_BDhw, valid_Bhw)

    return loss


def dense_teacher_loss(
    run: Run, head: DenseHead, teacher: DenseTeacher, photos: Photos, tokens_BDhw: Tensor
) -> Tensor:
    """Return the mean squared difference to the dense teacher's standardised features.

    As in PHI-S (arXiv 2410.01680): standardised, every channel and every teacher has the same
    weight, so that no cosine is needed. The maps are compared on the coarser of both grids.
    """
    with autocast(run):
        student_BDhw = head(tokens_BDhw).float()
    target_BDhw = head.standard(_target(run, teacher, photos))
    return embedding_loss(*_on_coarser_grid(photos, student_BDhw, target_BDhw))
