"""The outputs of a CLIP teacher that ``training.distillation.embeddings`` stored, and their views.

A photograph has a few fixed views: random cuts that depend only on its name and the view's number,
so that training can reproduce the picture of each stored output. The teacher resizes every view to
its own input; the student may see a view at any smaller side.

    FOLDER/targets.json                  the teacher, the views and the photographs
    FOLDER/SOURCE/000000.pooled.npy      float16 n×K×D: n samples of the part, K views
    FOLDER/SOURCE/000000.dense.npy       float16 n×K×D×h×w, optional

The rows of a broken sample are NaN.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samclip_core.io.files import replacing
from training.data.frames import Frame, cut
from training.data.sample import BadSample, Sample
from training.data.sources import Source

Array = NDArray[np.float16]


def view_of(sample: Sample, size: int, view: int) -> Frame:
    """Return view number ``view`` of ``sample``, ``size``×``size``. Raises BadSample."""
    name = f"{sample.source}\0{sample.key}\0{view}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    return cut(sample, (), size, 1, np.random.default_rng(seed), scales=(0.7, 1.3))


def _shrunk(frame: Frame, side: int) -> Frame:
    """Return a frame without masks at a smaller side."""
    size = frame.pixels_3SS.shape[-1]
    height, width = (max(1, round(length * side / size)) for length in frame.valid)
    inside_HW3 = frame.pixels_3SS[:, : frame.valid[0], : frame.valid[1]].transpose(1, 2, 0)
    pixels_3SS = np.zeros((3, side, side), np.uint8)
    pixels_3SS[:, :height, :width] = cv2.resize(
        inside_HW3, (width, height), interpolation=cv2.INTER_AREA
    ).transpose(2, 0, 1)
    return replace(frame, pixels_3SS=pixels_3SS, valid=(height, width))


def identity(teacher: nn.Module) -> str:
    """Return the hex sha256 of the names, types and values of a teacher's weights."""
    digest = hashlib.sha256()
    weights: dict[str, Tensor] = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The contents of a targets folder: ``views`` of ``size`` pixels, ``part`` samples per file.

    ``teacher`` is the teacher's ``identity``, ``sources`` the digest of each source by name.
    """

    teacher: str
    size: int
    views: int
    dense: bool
    part: int = 512
    sources: dict[str, str] = field(default_factory=dict)

    def files(self, folder: Path, source: Source) -> list[Path]:
        """Return the pooled file of each part, which is written last and marks a complete part."""
        return [
            pooled_file(folder, source.name, start, self.part)
            for start in range(0, len(source), self.part)
        ]

    def check(self, folder: Path, wanted: "Plan") -> None:
        """Raise ValueError if ``folder``, which holds this plan, does not fit ``wanted``."""
        advice = "use another folder, or empty this one"
        if self.teacher != wanted.teacher:
            raise ValueError(
                f"{folder} holds outputs of teacher {self.teacher[:12]}, not of "
                f"{wanted.teacher[:12]}: {advice}"
            )
        if replace(self, sources={}) != replace(wanted, sources={}):
            raise ValueError(
                f"{folder} holds {self._description()}, not {wanted._description()}: {advice}"
            )
        for name, digest in wanted.sources.items():
            if self.sources.get(name, digest) != digest:
                raise ValueError(f"{folder} was made from other photographs of {name}: {advice}")

    def _description(self) -> str:
        return (
            f"{self.views} views of {self.size} pixels {'with' if self.dense else 'without'} "
            f"dense maps in parts of {self.part} samples"
        )

    def write(self, folder: Path) -> None:
        """Write the plan to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "targets.json") as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """Read the plan of ``folder``, or return None if it has none."""
        file = folder / "targets.json"
        return cls(**json.loads(file.read_text())) if file.exists() else None


@dataclass(frozen=True)
class StoredTargets:
    """The stored outputs in a folder; holds no open file, so it can be forked and pickled."""

    folder: Path
    plan: Plan

    @classmethod
    def open(cls, folder: Path, teacher: str, sources: Sequence[Source]) -> "StoredTargets":
        """Open the targets of ``sources`` by the teacher with this ``identity``.

        Raises FileNotFoundError if the job has not run or is incomplete, ValueError if it ran with
        another teacher or other photographs.
        """
        plan = Plan.read(folder)
        if plan is None:
            raise FileNotFoundError(
                f"no targets.json in {folder}: run training.distillation.embeddings first"
            )
        digests = {source.name: source.digest() for source in sources}
        plan.check(folder, replace(plan, teacher=teacher, sources=digests))
        for source in sources:
            files = plan.files(folder, source)
            missing = sum(not file.exists() for file in files)
            if missing:
                raise FileNotFoundError(
                    f"{missing} of {len(files)} parts of {source.name} are missing in {folder}: "
                    "run training.distillation.embeddings again, it resumes where it stopped"
                )
        return cls(folder, plan)

    def view(self, sample: Sample, side: int, view: int) -> Frame:
        """Return view number ``view`` of ``sample`` at ``side``×``side``. Raises BadSample."""
        frame = view_of(sample, self.plan.size, view)
        return frame if side == self.plan.size else _shrunk(frame, side)

    def at(self, source: str, index: int, view: int) -> tuple[Array, Array | None]:
        """Return the teacher's ``pooled_D`` and, if stored, ``dense_Dhw`` of a view.

        Raises BadSample if the sample was broken.
        """
        file = pooled_file(self.folder, source, index, self.plan.part)
        row = index % self.plan.part, view
        pooled_D = _stored(file)[row]
        if np.isnan(pooled_D).any():
            raise BadSample(source, str(index), "it was broken when its targets were computed")
        return pooled_D, _stored(dense_file(file))[row] if self.plan.dense else None


@lru_cache(maxsize=256)
def _stored(file: Path) -> Array:
    return np.load(file, mmap_mode="r")


def pooled_file(folder: Path, source: str, index: int, part: int) -> Path:
    """Return the file with a sample's pooled embeddings."""
    return folder / source / f"{index // part:06d}.pooled.npy"


def dense_file(pooled: Path) -> Path:
    """Return the file of dense maps that belongs to a file of pooled embeddings."""
    return pooled.with_name(pooled.name.replace(".pooled.", ".dense."))
