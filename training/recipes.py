"""Recipes: functions that return everything a run is, as frozen dataclasses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import torch

from samclip_core.config import EDGE, VIT_B, SamClipConfig
from training.loop import Schedule

D = TypeVar("D")

# One name, many photographs: how much more often a set is drawn than its size alone says.
REGION_SETS = (
    ("coco_multi", 2.5),
    ("bsds500", 2.5),
    ("ccp_clothing", 0.5),
    ("labelmefacade", 0.7),
    ("camvid", 0.5),
)
PHOTO_SETS = (
    *(name for name, _ in REGION_SETS),
    *("caltech101", "imagen200", "imagenet1k_sample", "unlabeled", "extra"),
)


@dataclass(frozen=True, kw_only=True)
class SamBatch:
    """Images in a step and masks asked of each; ``at_once`` of them are learnt from at a time.

    ``corrected`` is the share of steps in which correcting clicks follow, ``rounds`` the prompts
    there are then.
    """

    images: int
    prompts: int
    at_once: int = 4
    rounds: int = 2
    corrected: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run; a stage without a schedule is left out.

    ``sam_weight`` is the paper's λ. Beyond the paper: ``dense_weight`` of the patch loss,
    ``embedding_weight`` of the standardised SAM embedding's loss on the photographs, so that both
    teachers see the same frames; ``name_weight`` of the class names of ``named_sets``, whose label
    maps then teach Head_CLIP's patches; ``kept_start``, of an edge merge, the share of Head_CLIP's
    first weights in its last ones. ``photo_sides`` and ``adaptation_sides`` are the frames of the
    photographs in stages I and II, and in stage III.
    """

    name: str
    kind: Literal["edge", "vit-b"]
    seed: int = 0
    sam_teacher: Schedule | None = None
    head_probing: Schedule | None = None
    joint: Schedule | None = None
    adaptation: Schedule | None = None
    sam_batch: SamBatch
    clip_images: int
    at_once: int = 16
    photo_sides: tuple[int, ...]
    adaptation_sides: tuple[int, ...] = ()
    sam_weight: float
    dense_weight: float = 0.0
    embedding_weight: float = 0.0
    name_weight: float = 0.0
    kept_start: float = 0.0
    named_images: int = 0
    named_sets: tuple[str, ...] = ()
    clip_loss: Literal["cosine", "angle"] = "cosine"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    checkpointing: bool = False  # vit-b: time for memory
    clip_teacher: int = 2  # edge: EfficientNet-Lite version
    region_sets: tuple[tuple[str, float], ...] = REGION_SETS
    photo_sets: tuple[str, ...] = PHOTO_SETS


def edge() -> Recipe:
    """The bundled checkpoint: about an hour and a half on two cores, with ``--start edge``.

    That goes on from the SAM of the checkpoint before; from nothing, the SAM teacher wants twice
    the steps.
    """
    return Recipe(
        name="edge",
        kind="edge",
        # The trunk stays ImageNet's: a step costs a quarter less, and CLIP's features survive.
        sam_teacher=Schedule(steps=2200, rate=8e-4, encoder_rate=0.0, warmup=100),
        # Validation cannot choose here: it has too few names, and without them it finds the head
        # best that has learnt the least.
        head_probing=Schedule(
            steps=480,
            rate=1e-3,
            warmup=10,
            average=0.95,
            weight_decay=0.0,
            save_every=80,
            keep="last",
        ),
        # Encoder and SAM's head have learnt all they need: small steps bring them together.
        joint=Schedule(
            steps=25,
            rate=3e-4,
            encoder_rate=0.2,
            warmup=10,
            average=0.95,
            weight_decay=0.0,
            save_every=25,
        ),
        sam_batch=SamBatch(images=4, prompts=6),
        clip_images=16,
        photo_sides=(384,),
        sam_weight=3.0,
        dense_weight=0.1,
        name_weight=0.1,
        kept_start=0.3,
        named_images=8,
        named_sets=("coco_multi",),
    )


def edge_naive_kd() -> Recipe:
    """The paper's forgetting baseline (appendix D): the CLIP teacher alone, no rehearsal.

    The encoder learns at the full rate: nothing tells this student to keep what it knows.
    """
    merge = edge()
    assert merge.joint is not None
    joint = replace(merge.joint, encoder_rate=1.0)
    return replace(merge, name="edge-naive-kd", joint=joint, sam_weight=0.0)


def edge_stage_1() -> Recipe:
    """Head probing only: the encoder stays as it is."""
    return replace(edge(), name="edge-stage-1", joint=None)


def vit_b() -> Recipe:
    """The paper's merge (section 2 and table 5) of SAM ViT-B and a CLIP, for many GPUs."""
    return Recipe(
        name="vit-b",
        kind="vit-b",
        head_probing=Schedule(steps=392_500, rate=8e-4, warmup=2000, save_every=2000),
        joint=Schedule(steps=314_000, rate=4e-5, encoder_rate=0.1, warmup=2000, save_every=2000),
        adaptation=Schedule(steps=59_000, rate=8e-4, warmup=2000, save_every=2000),
        sam_batch=SamBatch(images=32, prompts=32, at_once=2, rounds=10, corrected=1.0),
        clip_images=2048,
        at_once=64,
        photo_sides=(224, 448),
        adaptation_sides=(224, 448, 1024),
        sam_weight=10.0,
        checkpointing=True,
        photo_sets=("cc3m", "cc12m", "yfcc15m", "imagenet21k"),
        region_sets=(("sa1b", 1.0),),
    )


def debug() -> Recipe:
    """Every stage in seconds, for tests: it proves that the job runs, and teaches nothing."""
    short = Schedule(steps=2, rate=1e-4, warmup=1, average=0.5, save_every=1)
    return Recipe(
        name="debug",
        kind="edge",
        sam_teacher=short,
        head_probing=short,
        joint=short,
        adaptation=short,
        sam_batch=SamBatch(images=1, prompts=2),
        clip_images=2,
        photo_sides=(384,),
        adaptation_sides=(256, 384),
        sam_weight=1.0,
        dense_weight=0.5,
        embedding_weight=0.1,
        name_weight=0.1,
        kept_start=0.5,
        named_images=2,
        named_sets=("camvid",),
        region_sets=(("bsds500", 1.0),),
        photo_sets=("camvid",),
    )


RECIPES = {
    "edge": edge,
    "edge-naive-kd": edge_naive_kd,
    "edge-stage-1": edge_stage_1,
    "vit-b": vit_b,
    "debug": debug,
}


CONFIGS = {"edge": EDGE, "vit-b": VIT_B}


def override(value: D, changes: Sequence[str]) -> D:
    """The dataclass ``value`` with changes like ``joint.steps=10``; the right side is JSON.

    Raises ValueError where there is no such field, or the value is of another type.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r}: expected NAME=VALUE, as in joint.steps=10")
        value = _replaced(value, path.split("."), text, change)
    return value


def _replaced(value: Any, path: Sequence[str], text: str, change: str) -> Any:
    names = [known.name for known in fields(value)] if is_dataclass(value) else []
    if path[0] not in names:
        there = ", ".join(names) or "nothing: it is not there in this recipe"
        raise ValueError(f"{change!r}: no field {path[0]!r}, there is {there}")
    old = getattr(value, path[0])
    deeper = len(path) > 1
    new = _replaced(old, path[1:], text, change) if deeper else _read(text, old, change)
    allowed = get_args(get_type_hints(type(value))[path[0]])
    if isinstance(new, str) and allowed and new not in allowed:
        raise ValueError(f"{change!r}: expected one of {', '.join(map(str, allowed))}")
    return replace(value, **{path[0]: new})


def _read(text: str, old: Any, change: str) -> Any:
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    if isinstance(new, list):
        new = tuple(tuple(item) if isinstance(item, list) else item for item in new)
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if new is not None and type(new) is not type(old):
        raise ValueError(f"{change!r}: expected a value like {old!r}")
    return new


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a recipe runs: what is built, from what, and the folder of its states.

    ``text_tower`` is the checkpoint whose frozen text tower an edge merge keeps, ``start`` one
    whose SAM its SAM teacher goes on from (none: ImageNet's trunk). ``sam`` and ``clip``
    (MODEL:FILE) are the official teachers of a vit-b merge. ``readers`` processes of each worker
    decode ahead of the training; a worker computes on ``threads``. ``targets`` is a folder in which
    ``training.data.embeddings`` has kept the CLIP teacher's answers.
    """

    recipe: Recipe
    config: SamClipConfig
    data: str
    folder: Path
    text_tower: str = "edge"
    start: str = ""
    sam: str = ""
    clip: str = ""
    targets: str = ""
    readers: int = 0
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def side(self) -> int:
        """Pixels on a side of SAM's frame."""
        return self.config.image_size

    @property
    def mask_side(self) -> int:
        """Cells on a side of a mask's logits."""
        return 4 * self.config.grid
