"""Recipes: functions that return everything a run is, as frozen dataclasses."""

from dataclasses import dataclass
from pathlib import Path

from training.loop import Schedule

# One name, many photographs: how much more often a set is drawn than its size alone says.
REGION_SETS = {
    "coco_multi": 2.5,
    "bsds500": 2.5,
    "ccp_clothing": 0.5,
    "labelmefacade": 0.7,
    "camvid": 0.5,
}
PHOTO_SETS = (*REGION_SETS, "caltech101", "imagen200", "imagenet1k_sample", "unlabeled", "extra")


@dataclass(frozen=True, kw_only=True)
class SamBatch:
    """Images in a step, masks asked of each, and how often a correcting click follows."""

    images: int
    prompts: int
    second_round: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. ``sam_weight`` is the paper's λ, ``dense_weight`` that of the patch loss."""

    name: str
    seed: int
    sam_teacher: Schedule
    head_probing: Schedule
    joint: Schedule
    sam_batch: SamBatch
    clip_images: int
    sam_weight: float
    dense_weight: float
    imagenet_share: float  # how far the merge starts from SAM's trunk towards CLIP's
    clip_teacher: int = 2  # EfficientNet-Lite version
    region_sets: tuple[tuple[str, float], ...] = tuple(REGION_SETS.items())
    photo_sets: tuple[str, ...] = PHOTO_SETS


def edge() -> Recipe:
    """The bundled checkpoint: about an hour and a half on two cores."""
    return Recipe(
        name="edge",
        seed=0,
        # The trunk stays ImageNet's: a step costs a quarter less, and CLIP's features survive.
        sam_teacher=Schedule(steps=5000, rate=8e-4, encoder_rate=0.0, warmup=100),
        # Head_CLIP and the trunk start as a working classifier: small steps keep it one.
        head_probing=Schedule(steps=60, rate=3e-5, warmup=10, average=0.95, weight_decay=0.0),
        joint=Schedule(
            steps=120,
            rate=3e-5,
            encoder_rate=1.0,
            warmup=10,
            average=0.95,
            weight_decay=0.0,
            save_every=40,
        ),
        sam_batch=SamBatch(images=4, prompts=8),
        clip_images=16,
        sam_weight=3.0,
        dense_weight=0.5,
        imagenet_share=0.8,
    )


def debug() -> Recipe:
    """Every stage in seconds, for tests: it proves that the job runs, and teaches nothing."""
    short = Schedule(steps=2, rate=1e-4, warmup=1, average=0.5, save_every=1)
    return Recipe(
        name="debug",
        seed=0,
        sam_teacher=short,
        head_probing=short,
        joint=short,
        sam_batch=SamBatch(images=1, prompts=2),
        clip_images=2,
        sam_weight=1.0,
        dense_weight=0.5,
        imagenet_share=0.8,
        region_sets=(("bsds500", 1.0),),
        photo_sets=("camvid",),
    )


RECIPES = {"edge": edge, "debug": debug}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a recipe runs: its data and the folder that holds its states and its checkpoint."""

    recipe: Recipe
    data: Path
    folder: Path
    start: str = ""  # checkpoint whose SAM the SAM teacher starts from; none: ImageNet's trunk
