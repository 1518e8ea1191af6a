"""Draw the data of a step from the step's number, so that any worker can draw any part again.

A step's global batch is a list of slots. ``training.data.order`` says which photograph a slot gets.
Each slot has its own random numbers, seeded by (seed, stage, step, kind, slot); values that a whole
step shares (the frame's size, the rounds of clicks) are seeded by (seed, stage, step, 0). A run is
therefore the same for any number of workers and after any interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training import workers
from training.data.annotations import class_names, classes, regions
from training.data.frames import Crop, Frame, View, cut, stacked, stacked_views
from training.data.order import Held, seeded
from training.data.pool import Pool
from training.data.sample import Sample
from training.distillation.segmentation import Batch, click_rounds, make_batch
from training.recipes import Run

T = TypeVar("T")
NAMED_STRIDE = 16  # side in pixels of the cells in which class shares are computed
VALIDATION_STEPS = 4


@dataclass(frozen=True)
class Photos:
    """Photographs without labels: ``pixels_B3SS`` 0..255, int valid ``sizes_B2``.

    Pixels are uint8 until they are moved to the run's device, and float then. ``view_B3LL`` are the
    same crops as the CLIP teacher reads them.
    """

    pixels_B3SS: Tensor
    sizes_B2: Tensor
    view_B3LL: Tensor

    def view(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's pixels, B×3×L×L, and their sizes, B×2: a view has no padding."""
        return self.view_B3LL, torch.full_like(self.sizes_B2, self.view_B3LL.shape[-1])


@dataclass(frozen=True)
class Named:
    """Photographs with known classes: ``share_BLhw`` is the share of a cell that each one covers.

    L: the classes of all named sets, in the sets' order. Void belongs to no class.
    """

    pixels_B3SS: Tensor
    sizes_B2: Tensor
    share_BLhw: Tensor


@dataclass(frozen=True)
class Drawn:
    """A worker's part of a step, in pieces small enough for one forward and backward pass."""

    photos: list[Photos] = field(default_factory=list)
    outlined: list[Batch] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    clicks: tuple[bool, ...] = ()

    def __len__(self) -> int:
        pieces: list[Photos | Batch | Named] = [*self.photos, *self.outlined, *self.named]
        return sum(len(piece.pixels_B3SS) for piece in pieces)

    def pin_memory(self) -> "Drawn":
        """Return the same data in page-locked memory; the loader calls this method by its name."""
        return _changed(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> "Drawn":
        """Return the same data on ``device``; uint8 tensors, which are pixels, become float32."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device, non_blocking=True)
            return moved.float() if moved.dtype == torch.uint8 else moved

        return _changed(self, move)


def _changed(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """Return nested dataclasses and lists with ``change`` of each of their tensors."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, list):
        changed = [_changed(item, change) for item in value]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {name: _changed(part, change) for name, part in vars(value).items()}
        changed = replace(value, **parts)
    return cast(T, changed)


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """The kinds of data in a stage's steps: photographs at the sides ``photos``, regions, names.

    ``view`` is that of the CLIP teacher.
    """

    photos: Sequence[int] = ()
    view: View | None = None
    outlined: bool = False
    named: bool = False


class Sampler(Dataset[Drawn]):
    """A dataset whose item ``step`` is this worker's part of that step."""

    def __init__(self, run: Run, stage: int, kinds: Kinds, held_out: bool = False) -> None:
        """With ``held_out``, draw validation data."""
        recipe = run.recipe
        self.run, self.stage, self.kinds = run, stage, kinds
        # A reader is a process of its own, and not in the workers' group.
        self.first, self.every = workers.rank(), workers.count()

        def pool(kind: int, sets: Sequence[tuple[str, float]], images: int) -> Pool:
            key = recipe.seed, stage, 0, 11 + kind
            return Pool(run.data, sets, images, key, Held(recipe.held_out, held_out))

        sam, named = recipe.sam_batch, [(name, 1.0) for name in recipe.named_sets]
        self.photo_pool = pool(0, recipe.photo_sets, recipe.clip_images) if kinds.photos else None
        self.region_pool = pool(1, recipe.region_sets, sam.images) if kinds.outlined else None
        self.named_pool = pool(2, named, recipe.named_images) if kinds.named else None
        sets = recipe.named_sets if kinds.named else ()
        self.classes = [(s, index) for s in sets for index in class_names(run.data, s)]

    def __getitem__(self, step: int) -> Drawn:
        shared = seeded(self.run.recipe.seed, self.stage, step, 0)
        side = int(shared.choice(self.kinds.photos)) if self.kinds.photos else 0
        sam = self.run.recipe.sam_batch
        corrected = shared.random() < sam.corrected
        clicks = click_rounds(shared, sam.rounds - 1, sam.refined) if corrected else ()
        photos, outlined = [*self._photos(step, side)], [*self._outlined(step)]
        return Drawn(photos, outlined, [*self._named(step)], clicks)

    def _drawn(
        self,
        pool: Pool | None,
        step: int,
        kind: int,
        images: int,
        at_once: int,
        make: Callable[[np.random.Generator, Sample], T | None],
    ) -> Iterator[tuple[list[T], list[np.random.Generator]]]:
        """Yield what ``make`` returns for this worker's slots, and their random numbers.

        They come in pieces of at most ``at_once``; without a pool there are none.
        """
        if pool is None:
            return
        own = range(self.first, images, self.every)
        key = self.run.recipe.seed, self.stage, step, 1 + kind
        turns = [*zip(pool.read(step, own), (seeded(*key, slot) for slot in own), strict=True)]
        for start in range(0, len(own), at_once):
            piece = turns[start : start + at_once]
            rngs = [rng for _, rng in piece]
            yield [pool.draw(read, rng, partial(make, rng)) for read, rng in piece], rngs

    def _photos(self, step: int, side: int) -> Iterator[Photos]:
        def make(rng: np.random.Generator, sample: Sample) -> list[NDArray[np.uint8]]:
            return Crop.draw(rng).views(sample, [View(side), self.kinds.view or View(side)])

        images, at_once = self.run.recipe.clip_images, self.run.recipe.at_once
        for drawn, _ in self._drawn(self.photo_pool, step, 0, images, at_once, make):
            pixels, view = (torch.from_numpy(stacked_views(v)) for v in zip(*drawn, strict=True))
            yield Photos(pixels, torch.full((len(pixels), 2), side), view)

    def _outlined(self, step: int) -> Iterator[Batch]:
        sam = self.run.recipe.sam_batch
        drawn = self._drawn(self.region_pool, step, 1, sam.images, sam.at_once, self._frame)
        for frames, rngs in drawn:
            yield make_batch(frames, rngs, self.run.side, sam.rounds, sam.exact_boxes)

    def _frame(self, rng: np.random.Generator, sample: Sample) -> Frame | None:
        """Return a frame with the masks to predict, or None if no region stays visible."""
        side, prompts = self.run.side, self.run.recipe.sam_batch.prompts
        rles = regions(sample)
        # A few more than needed, because the cut drops some.
        chosen = [rles[i] for i in rng.permutation(len(rles))[: prompts + 6]]
        frame = cut(sample, chosen, side, self.run.mask_side, rng)
        return frame.first(prompts) if len(frame.masks_Pmm) else None

    def _named(self, step: int) -> Iterator[Named]:
        images, at_once = self.run.recipe.named_images, self.run.recipe.at_once
        for drawn, _ in self._drawn(self.named_pool, step, 2, images, at_once, self._with_shares):
            frames, shares = zip(*drawn, strict=True)
            yield Named(*stacked(frames), torch.from_numpy(np.stack(shares)))

    def _with_shares(
        self, rng: np.random.Generator, sample: Sample
    ) -> tuple[Frame, NDArray[np.float32]] | None:
        """Return a frame and each class's share of each cell, or None without a label map."""
        if not sample.label_png:
            return None
        places = {i: at for at, (name, i) in enumerate(self.classes) if name == sample.source}
        masks = classes(sample, places)
        side, cells = self.run.side, self.run.side // NAMED_STRIDE
        frame = cut(sample, list(masks.values()), side, cells, rng, every=True)
        share_Lhw = np.zeros((len(self.classes), cells, cells), np.float32)
        share_Lhw[[places[index] for index in masks]] = frame.masks_Pmm
        return frame, share_Lhw


def batches(sampler: Sampler, steps: range, readers: int = 0) -> Iterable[Drawn]:
    """Return the drawn steps in order; ``readers`` processes decode ahead, one thread each."""
    return DataLoader(
        sampler,
        batch_size=None,
        sampler=steps,
        num_workers=readers,
        multiprocessing_context=workers.clean() if readers else None,
        # A step may have a gigabyte of pixels, so each reader prepares a single one.
        prefetch_factor=1 if readers else None,
        pin_memory=sampler.run.device.type == "cuda",
        worker_init_fn=_begin_reader,
    )


def _begin_reader(_: int) -> None:
    cv2.setNumThreads(1)  # torch already limits itself
    workers.end_with_parent()
