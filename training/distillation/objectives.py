"""The losses of a step, by the data that they are on: photographs, named classes, masks.

Each of them declares the names of its figures. B images, h w grid, D width, L classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.nn.network import SamClipNet
from samclip_core.nn.vit import valid_mask
from training import workers
from training.data.frames import View
from training.data.targets import StoredTargets
from training.distillation.dense import DenseHead, DenseTeacher, PhiS, RadioTeacher
from training.distillation.losses import (
    DICE_LOSSES,
    clip_loss,
    dense_loss,
    embedding_loss,
    name_loss,
    sam_distillation_loss,
)
from training.distillation.sampling import Drawn, Kinds, Photos, Sampler
from training.distillation.segmentation import Batch, Criterion, Prompts, decode, segment_step
from training.loop import Portion
from training.recipes import Run

DENSE_HEAD = "dense_head"  # the part of a student that learns the dense teacher's features
STANDARDISED_STEPS = 4  # steps of photographs to fit the standardisation of a teacher's features
CLIP, DENSE = "clip", "dense"  # names of the teachers' views
Maps = Callable[[Photos], Tensor]  # to BDhw


class PhotoTeacher(Protocol):
    """A teacher that reads ``view``; returns ``dense_BDhw`` and ``pooled_BD``."""

    view: View

    def __call__(self, pixels_B3SS: Tensor, sizes_B2: Tensor, /) -> tuple[Tensor, Tensor]: ...


class PhotoTeachers(NamedTuple):
    """The teachers on photographs: CLIP's, the class names of the named sets, a dense teacher.

    ``kept`` are stored outputs of the CLIP teacher, used instead of it. ``names_LD`` are the text
    embeddings of the class names. Every vector has length 1. With a ``dense`` teacher, the student
    has a ``DENSE_HEAD``.
    """

    clip: PhotoTeacher
    names_LD: Tensor
    kept: StoredTargets | None = None
    dense: DenseTeacher | RadioTeacher | None = None

    def running(self) -> dict[str, PhotoTeacher | DenseTeacher | RadioTeacher]:
        """Return the teachers that run, by the names of their views."""
        teachers = {CLIP: None if self.kept else self.clip, DENSE: self.dense}
        return {name: teacher for name, teacher in teachers.items() if teacher is not None}

    def views(self) -> dict[str, View]:
        """Return the views of the teachers that run."""
        return {name: teacher.view for name, teacher in self.running().items()}


class Seen(NamedTuple):
    """Photographs as the student's encoder and Head_CLIP see them, and as its CLIP teacher does."""

    photos: Photos
    sam_BDhw: Tensor
    tokens_BDhw: Tensor
    dense_BDhw: Tensor
    pooled_BD: Tensor
    target_BDhw: Tensor | None
    target_BD: Tensor


@dataclass(frozen=True)
class Term:
    """A loss on photographs: the name of its figure, its weight in the sum, its computation."""

    name: str
    weight: float
    loss: Callable[[SamClipNet, Seen], Tensor]


class PhotoLoss:
    """The weighted sum of L_CLIP (paper, equation 1) and of the optional losses on photographs."""

    def __init__(self, run: Run, teachers: PhotoTeachers, more: Iterable[Term] = ()) -> None:
        self.run, self.teachers = run, teachers
        self.terms = [Term("clip", 1.0, _clip_loss)]
        if run.recipe.dense_weight:
            self.terms.append(Term("dense", run.recipe.dense_weight, _dense_loss))
        self.terms += more
        if teachers.dense is not None:
            self.terms.append(dense_teacher_term(run, teachers.dense))
        self.names = [term.name for term in self.terms]

    def portions(self, net: SamClipNet, drawn: Drawn) -> Iterator[Portion]:
        """Yield the losses of the photographs."""
        for photos in drawn.photos:
            seen = self._see(net, photos)
            losses = [term.loss(net, seen) for term in self.terms]
            share = len(photos.pixels_B3SS) / self.run.recipe.clip_images
            first, *others = (t.weight * loss for t, loss in zip(self.terms, losses, strict=True))
            shown = [share * loss.detach() for loss in losses]
            yield Portion(share * sum(others, first), dict(zip(self.names, shown, strict=True)))

    def _see(self, net: SamClipNet, photos: Photos) -> Seen:
        with autocast(self.run):
            target_BDhw, target_BD = None, photos.pooled_BD
            if target_BD is None:
                target_BDhw, target_BD = self.teachers.clip(*photos.view(CLIP))
            sam_BDhw, tokens_BDhw = net.image_encoder(photos.pixels_B3SS, photos.sizes_B2)
            dense_BDhw, pooled_BD = net.clip_head(tokens_BDhw, photos.sizes_B2)
        student = sam_BDhw, tokens_BDhw, dense_BDhw, pooled_BD
        return Seen(photos, *student, target_BDhw, target_BD)


def _clip_loss(_: SamClipNet, seen: Seen) -> Tensor:
    return clip_loss(seen.pooled_BD.float(), seen.target_BD.float()).mean()


def _dense_loss(_: SamClipNet, seen: Seen) -> Tensor:
    if seen.target_BDhw is None:
        raise ValueError(
            "the recipe has dense_weight, but the CLIP teacher's outputs have no dense "
            "maps: use --set dense_weight=0"
        )
    maps = seen.dense_BDhw.float(), seen.target_BDhw.float()
    return dense_loss(*_on_coarser_grid(seen.photos, *maps))


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
                _, dense_BDhw, _ = net.encode(named.pixels_B3SS, named.sizes_B2)
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
    dice = DICE_LOSSES[run.recipe.dice]

    def criterion(batch: Batch) -> Criterion:
        with torch.no_grad():
            sam_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw

        def compare(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> Tensor:
            with torch.no_grad():
                targets = decode(teacher, sam_BDhw, batch, prompts)
            return sam_distillation_loss(logits_P4mm, iou_P4, *targets, dice)

        return compare

    return criterion


def autocast(run: Run) -> torch.autocast:
    """Return the context in which networks run with the recipe's precision."""
    half = run.recipe.dtype == "bfloat16"
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=half)


def _on_coarser_grid(photos: Photos, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two maps over the frame, pooled to the coarser grid of both, and its valid cells."""
    grid = min(map_BDhw.shape[-1] for map_BDhw in maps)
    student_BDhw, teacher_BDhw = (F.adaptive_avg_pool2d(map_BDhw, grid) for map_BDhw in maps)
    return student_BDhw, teacher_BDhw, _valid_cells(photos, grid)


def _valid_cells(photos: Photos, grid: int) -> Tensor:
    """Return ``valid_Bhw`` of a grid over the frame, whose side need not be a multiple of it."""
    return valid_mask(photos.sizes_B2 * grid, grid, grid, photos.pixels_B3SS.shape[-1])


def fit_standard(
    run: Run, stage: int, teacher: Maps, views: Mapping[str, View] | None = None
) -> PhiS:
    """Fit PHI-S to a teacher's features of a few steps of photographs, equal on all workers.

    It is fitted once per run, because axes may come out differently each time: the sign of an
    eigenvector is arbitrary.
    """

    def features() -> Iterator[Tensor]:
        kinds = Kinds(photos=run.recipe.photo_sides, views=views or {})
        sampler = Sampler(run, stage, kinds, whole=True)
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
        return teacher(photos).float()


def embedding_term(run: Run, stage: int, teacher: SamClipNet) -> Term:
    """Return the loss on the teacher's standardised SAM embedding of photographs."""

    def embedding(photos: Photos) -> Tensor:
        sam_BDhw: Tensor = teacher.image_encoder(photos.pixels_B3SS, photos.sizes_B2).sam_BDhw
        return sam_BDhw

    standard = fit_standard(run, stage, embedding)

    def loss(_: SamClipNet, seen: Seen) -> Tensor:
        target_BDhw = standard(_target(run, embedding, seen.photos))
        valid_Bhw = _valid_cells(seen.photos, target_BDhw.shape[-1])
        return embedding_loss(standard(seen.sam_BDhw.float()), target_BDhw, valid_Bhw)

    return Term("embedding", run.recipe.embedding_weight, loss)


def patches_of(teacher: DenseTeacher | RadioTeacher) -> Maps:
    """Return the dense teacher's features of its view of photographs."""
    return lambda photos: teacher(*photos.view(DENSE))


def fit_dense(run: Run, stage: int, teacher: DenseTeacher | RadioTeacher) -> PhiS:
    """Return ``fit_standard`` of a dense teacher."""
    return fit_standard(run, stage, patches_of(teacher), {DENSE: teacher.view})


def dense_teacher_term(run: Run, teacher: DenseTeacher | RadioTeacher) -> Term:
    """Return the mean squared difference to the dense teacher's standardised features.

    As in PHI-S (arXiv 2410.01680): standardised, every channel and every teacher has the same
    weight, so that no cosine is needed. The maps are compared on the coarser of both grids.
    """

    def loss(net: SamClipNet, seen: Seen) -> Tensor:
        head = cast(DenseHead, net.get_submodule(DENSE_HEAD))
        with autocast(run):
            student_BDhw = head(seen.tokens_BDhw).float()
        target_BDhw = head.standard(_target(run, patches_of(teacher), seen.photos))
        return embedding_loss(*_on_coarser_grid(seen.photos, student_BDhw, target_BDhw))

    return Term("dense_teacher", run.recipe.dense_teacher_weight, loss)
