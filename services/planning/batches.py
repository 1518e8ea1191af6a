"""The size of a batch (``samclip batch``), from core-seconds and bytes per image.

A batch keeps all its cores busy, so its hours are its core-seconds over the cores.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.planning.sizes import GB, Choices, PlanError

MODELS = Path(__file__).with_name("batches.json")
ROW_BYTES = 300
"""Of a row's id, source, key and labels."""
MASKS = 93
"""Masks of an image in everything, on average of photographs; an RLE and its scores take 620
bytes."""
MASK_BYTES = 620
OBJECTS, OUTLINE_BYTES = 85, 770
"""Objects of an image, and the bytes of each besides its float16 vector, on the same average."""
WORKER_BYTES, WORKER_CORES = 0.75e9, 2
QUESTIONS = ("embed", "everything", "regions")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    core_seconds_an_image: float
    core_hours: float
    cores: int
    hours: float
    images_per_s: float
    memory_gb: float
    read_gb: float
    tables_gb: float
    usd_of_cores: float
    usd_of_memory: float
    usd: float


def models() -> dict[str, dict[str, Any]]:
    """Return the figures of each model, and a text ``about`` their origin."""
    found: dict[str, dict[str, Any]] = json.loads(MODELS.read_text())
    return found


def plan_batch(
    images: float,
    model: Mapping[str, Any],
    questions: tuple[str, ...],
    *,
    cores: int,
    image_bytes: float,
    choices: Choices,
) -> BatchPlan:
    """Return the time, the bytes and the cost of a batch on ``cores``. Raises PlanError."""
    if not 1 <= images < math.inf or cores < 1:
        raise PlanError(f"{images:g} images on {cores} cores: expected at least 1 of each")
    searched = {"everything", "regions"} & {*questions}  # one search answers both
    seconds = model["encode_cpu_s"] + (model["everything_cpu_s"] if searched else 0)
    vector = 4 * model["dimension"]
    row = ROW_BYTES + ("embed" in questions) * vector
    row += ("everything" in questions) * MASKS * MASK_BYTES
    row += ("regions" in questions) * MASKS * (MASK_BYTES + vector)
    row += ("regions" in questions) * OBJECTS * (OUTLINE_BYTES + vector / 2)
    core_hours = images * seconds / 3600
    hours = core_hours / cores
    memory_gb = max(1, cores // WORKER_CORES) * WORKER_BYTES / GB
    usd = {
        "usd_of_cores": core_hours * choices.core_hour,
        "usd_of_memory": memory_gb * hours * choices.gb_hour,
    }
    return BatchPlan(
        core_seconds_an_image=seconds,
        core_hours=core_hours,
        cores=cores,
        hours=hours,
        images_per_s=cores / seconds,
        memory_gb=memory_gb,
        read_gb=images * image_bytes / GB,
        tables_gb=images * row / GB,
        **usd,
        usd=sum(usd.values()),
    )
