"""The outputs of a CLIP teacher that ``training.distillation.embeddings`` stored, and their views.

A photograph has a few fixed views: random square crops that depend only on its name and the view's
number, so that training can reproduce the picture of each stored output. The teacher sees a crop at
its own input size, the student at any side.

    FOLDER/targets.json                  the teacher, the views and the photographs
    FOLDER/SOURCE/000000.pooled.npy      float16 n×K×D: n samples of the part, K views

The rows of a broken sample are NaN.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samclip_core.io.files import replacing
from training.data.frames import Crop
from training.data.sample import BadSample, Sample
from training.data.sources import Source

Array = NDArray[np.float16]


def crop_of(sample: Sample, view: int) -> Crop:
    """Return the crop of view number ``view`` of ``sample``."""
    name = f"{sample.source}\0{sample.key}\0{view}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    return Crop.draw(np.random.default_rng(seed))


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
    """The contents of a targets folder: ``views`` per photograph, ``part`` samples per file.

    ``teacher`` is the teacher's ``identity``, ``sources`` the digest of each source by name.
    """

    teacher: str
    views: int
    part: int = 512
    sources: dict[str, str] = field(default_factory=dict)

    def files(self, folder: Path, source: Source) -> list[Path]:
        """Return the file of each part."""
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
        held, needed = (
            f"{plan.views} square views in parts of {plan.part} samples" for plan in (self, wanted)
        )
        if held != needed:
            raise ValueError(f"{folder} holds {held}, not {needed}: {advice}")
        for name, digest in wanted.sources.items():
            if self.sources.get(name, digest) != digest:
                raise ValueError(f"{folder} was made from other photographs of {name}: {advice}")

    def write(self, folder: Path) -> None:
        """Write the plan to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "targets.json") as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """Read the plan of ``folder``, or return None if it has none.

        Older plans also say of what kind the views are. Raises ValueError if those are padded.
        """
        file = folder / "targets.json"
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        if "dense" in content and content.get("crops") != "square":
            raise ValueError(
                f"{folder} is of an older version with padded views: use another folder, or empty "
                "this one"
            )
        own = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in own})


@dataclass(frozen=True)
class StoredTargets:
    """The stored outputs in a folder; holds no open file, so it can be pickled."""

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

    def at(self, source: str, index: int, view: int) -> Array:
        """Return the teacher's ``pooled_D`` of a view.

        Raises BadSample if the sample was broken.
        """
        file = pooled_file(self.folder, source, index, self.plan.part)
        pooled_D: Array = _stored(file)[index % self.plan.part, view]
        if np.isnan(pooled_D).any():
            raise BadSample(source, str(index), "it was broken when its targets were computed")
        return pooled_D


@lru_cache(maxsize=256)
def _stored(file: Path) -> Array:
    return np.load(file, mmap_mode="r")


def pooled_file(folder: Path, source: str, index: int, part: int) -> Path:
    """Return the file with a sample's pooled embeddings."""
    return folder / source / f"{index // part:06d}.pooled.npy"
