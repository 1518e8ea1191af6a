"""Recipes: functions that return the full definition of a run as frozen dataclasses."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from samclip_core.config import EDGE, VIT_B, SamClipConfig
from training.schedule import Schedule

STAGES = SAM_TEACHER, HEAD_PROBING, JOINT, ADAPTATION = (
    "sam-teacher",
    "head-probing",
    "joint",
    "adaptation",
)
Dice = Literal["semimetric", "product"]
# Sets with their sampling weights relative to size.
REGION_SETS = (
    ("coco_multi", 2.5),
    ("bsds500", 2.5),
    ("ccp_clothing", 0.5),
    ("labelmefacade", 0.7),
    ("camvid", 0.5),
)
PHOTO_SETS = tuple(
    (name, 1.0)
    for name in (
        *dict(REGION_SETS),
        *("caltech101", "imagen200", "imagenet1k_sample", "unlabeled", "extra"),
    )
)


@dataclass(frozen=True, kw_only=True)
class SamBatch:
    """Images per step and masks prompted per image; ``at_once`` images form one forward pass.

    In a share ``corrected`` of the steps, each mask gets ``rounds`` prompts: the first one and
    correcting clicks. With ``refined``, two more rounds add no click, only the mask before, as in
    SAM's training. In a share ``exact_boxes`` of the images, boxes are exact, as detectors give
    them; SAM's are imprecise in all.
    """

    images: int
    prompts: int
    at_once: int = 4
    rounds: int = 2
    corrected: float = 0.3
    refined: bool = False
    exact_boxes: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The full definition of a run; stages without a schedule are skipped.

    ``sam_weight`` is the paper's λ. The other weights are not in the paper: ``dense_weight`` of the
    patch loss; ``name_weight`` of the loss of Head_CLIP's patches on the label maps of
    ``named_sets``. The weight of CLIP's pooled embedding is 1. ``kept_start`` (edge only) is the
    share of Head_CLIP's initial weights mixed into its final ones. ``photo_sides`` are the frame
    sides of the photographs in stages I and II, ``adaptation_sides`` those in stage III. One in
    ``held_out`` photographs of each set is for validation alone. ``dice`` is the form of the Dice
    loss: ``semimetric``, which suits a teacher's soft masks, or SAM's ``product``.

    With ``checkpointing``, activations are computed again in the backward pass, which takes a fifth
    of their memory and a third more arithmetic. With ``compile``, the blocks of networks are
    compiled.
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
    name_weight: float = 0.0
    kept_start: float = 0.0
    named_images: int = 0
    named_sets: tuple[str, ...] = ()
    held_out: int = 50
    dice: Dice = "semimetric"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    checkpointing: bool = False
    compile: bool = False
    clip_teacher: int = 2  # edge: EfficientNet-Lite version
    region_sets: tuple[tuple[str, float], ...] = REGION_SETS
    photo_sets: tuple[tuple[str, float], ...] = PHOTO_SETS


def edge() -> Recipe:
    """Return the recipe of the bundled checkpoint: about 90 minutes on two cores.

    This assumes ``--start edge``, which starts from the SAM of the previous checkpoint. From
    ImageNet's trunk, the SAM teacher needs twice the steps.
    """
    return Recipe(
        name="edge",
        kind="edge",
        # Freezing ImageNet's trunk makes steps a quarter cheaper and preserves CLIP's features.
        sam_teacher=Schedule(steps=2200, rate=8e-4, encoder_rate=0.0, warmup=100),
        # Keep the last weights: the held-out photographs have too few names to choose by, and
        # without names the validation loss favours the least trained head.
        head_probing=Schedule(
            steps=480,
            rate=1e-3,
            warmup=10,
            average=0.95,
            weight_decay=0.0,
            save_every=80,
            keep="last",
        ),
        # The encoder and Head_SAM are already trained: a few small steps are enough.
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
    """Return the paper's forgetting baseline (appendix D): the CLIP teacher alone, no rehearsal.

    The encoder learns at the full rate, since no loss here preserves SAM's features.
    """
    merge = edge()
    assert merge.joint is not None
    joint = replace(merge.joint, encoder_rate=1.0)
    return replace(merge, name="edge-naive-kd", joint=joint, sam_weight=0.0)


def edge_stage_1() -> Recipe:
    """Return the edge recipe without joint distillation: the encoder stays SAM's."""
    return replace(edge(), name="edge-stage-1", joint=None)


def vit_b() -> Recipe:
    """Return the paper's merge (section 2 and table 5) of SAM ViT-B and a CLIP, for many GPUs."""
    return Recipe(
        name="vit-b",
        kind="vit-b",
        head_probing=Schedule(steps=392_500, rate=8e-4, warmup=2000, save_every=2000),
        joint=Schedule(steps=314_000, rate=4e-5, encoder_rate=0.1, warmup=2000, save_every=2000),
        adaptation=Schedule(steps=59_000, rate=8e-4, warmup=2000, save_every=2000),
        sam_batch=SamBatch(
            images=32,
            prompts=32,
            at_once=2,
            rounds=9,
            corrected=1.0,
            refined=True,
            exact_boxes=0.0,
        ),
        clip_images=2048,
        at_once=64,
        photo_sides=(224, 448),
        adaptation_sides=(224, 448, 1024),
        sam_weight=10.0,
        held_out=100,
        photo_sets=(("cc3m", 1.0), ("cc12m", 1.0), ("yfcc15m", 1.0), ("imagenet21k", 1.0)),
        region_sets=(("sa1b", 1.0),),
    )


def vit_b_naive_kd() -> Recipe:
    """Return the paper's forgetting baseline at its size (appendix D): CLIP alone, no rehearsal.

    The paper's took 20 epochs of ImageNet-21k.
    """
    merge = vit_b()
    assert merge.joint is not None
    joint = replace(merge.joint, encoder_rate=1.0)
    return replace(
        merge,
        name="vit-b-naive-kd",
        joint=joint,
        adaptation=None,
        sam_weight=0.0,
        photo_sets=(("imagenet21k", 1.0),),
    )


def mobile() -> Recipe:
    """Return the paper's merge for a small student: MobileSAM with SigLIP 2 or CLIP, for one GPU.

    Within a day (``results/BUDGET.md``), stages I and II see as many photographs as an epoch of the
    paper's has, half as many per step, and a seventh of its prompts.
    """
    return replace(
        vit_b(),
        name="mobile",
        head_probing=Schedule(steps=40_000, rate=8e-4, warmup=1000, save_every=1000),
        joint=Schedule(steps=40_000, rate=4e-5, encoder_rate=0.1, warmup=1000, save_every=1000),
        adaptation=Schedule(steps=6_000, rate=8e-4, warmup=500, save_every=1000),
        sam_batch=replace(vit_b().sam_batch, images=16, prompts=16, rounds=4),
        clip_images=1024,
        at_once=32,
    )


def debug() -> Recipe:
    """Return a recipe for tests: every stage runs within seconds, without a useful result."""
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
        photo_sides=(128,),
        adaptation_sides=(128, 192),
        sam_weight=1.0,
        dense_weight=0.5,
        name_weight=0.1,
        kept_start=0.5,
        named_images=2,
        named_sets=("camvid",),
        region_sets=(("bsds500", 1.0),),
        photo_sets=(("camvid", 1.0),),
    )


_MAKERS = (edge, edge_naive_kd, edge_stage_1, vit_b, vit_b_naive_kd, mobile, debug)
RECIPES = {make().name: make for make in _MAKERS}
CONFIGS = {"edge": EDGE, "vit-b": VIT_B}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe with its inputs, its resources and the folder of its states, a path or a URL.

    The inputs and resources are the options of ``samclip train``, which describes them. Without
    ``start``, an edge SAM teacher starts from ImageNet's trunk and a vit-b student from ``sam``;
    ``readers`` None: as many as ``workers.readers`` says.
    """

    recipe: Recipe
    config: SamClipConfig
    data: str
    folder: str | Path
    text_tower: str = "edge"
    start: str = ""
    sam: str = ""
    clip: str = ""
    readers: int | None = 0
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def side(self) -> int:
        """Return the side of SAM's frame in pixels."""
        return self.config.image_size

    @property
    def mask_side(self) -> int:
        """Return the side of a mask's logits in cells."""
        return 4 * self.config.grid
