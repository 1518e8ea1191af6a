"""The answers about one image, as a row of the table ``images``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.areas import Classify
from samclip_core.answers.find_objects import FindObjects
from samclip_core.answers.request import check_has_masks
from samclip_core.answers.segment_everything import Everything
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Encode
from samclip_core.answers.things import best_of_each
from samclip_core.answers.tiles import (
    PlacedMask,
    Tiling,
    of_everything,
    place,
    tiles_of,
)
from samclip_core.answers.zero_shot import pooled, unit
from samclip_core.encoder import Prepared
from samclip_core.geometry import Crop
from samclip_core.io.masks import Runs, encode_label_map, encode_runs, runs_of_logits
from samclip_core.model import Runner, SamClip
from samclip_core.types import EverythingMask, ImageFeatures, TextPrompt
from services.lake.heads import BatchHead
from services.retrieval.find_objects import PackedObjects

T = TypeVar("T", Prepared, ImageFeatures)
Parts = Mapping[int, Sequence[tuple[Crop | None, T]]]
"""A picture and then its tiles, by the side of the frame."""
TILED = "text", "everything", "semantic", "regions"
"""Questions that search tiles as well."""


def sizes(model: SamClip, work: Mapping[str, Any]) -> list[int]:
    """Return the sides of the frames that the work needs; often a single one."""
    config = model.config
    needed = [
        (work["embed"], config.size_of("retrieval")),
        (work["labels"], config.size_of("classify")),
        (work["semantic"], config.size_of("semantic")),
        (work["text"] or work["everything"] or work["regions"], config.image_size),
        *((True, head.size) for head in work.get("heads", ())),
    ]
    return list(dict.fromkeys(size for wanted, size in needed if wanted))


def check(model: SamClip, work: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, InvalidLabels or HeadError if the model cannot do the work."""
    if work["text"] or work["everything"] or work["regions"]:
        check_has_masks(model.config)
    grey_HW3 = np.full((32, 32, 3), 128, np.uint8)
    whole = {size: [(None, model.encode(grey_HW3, size))] for size in sizes(model, work)}
    answer(model, work, whole)


def opened(model: SamClip, work: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the work with its heads, which are specifications, loaded. Raises as ``BatchHead``."""
    return {**work, "heads": [BatchHead(spec, model) for spec in work.get("heads", ())]}


def prepare(
    model: SamClip, work: Mapping[str, Any], image_HW3: NDArray[np.uint8]
) -> Parts[Prepared]:
    """Resize a picture for each side of the frame, and its tiles where a question needs them.

    Raises InvalidRequest for tiles that are too small.
    """
    asked = {name: work[name] for name in TILED}
    tiled = sizes(model, dict.fromkeys(work, ()) | asked)
    height, width, _ = image_HW3.shape
    tiles, most = work.get("tiles", (0, 0))
    parts = dict[int, list[tuple[Crop | None, Prepared]]]()
    for side in sizes(model, work):
        parts[side] = [(None, model.prepare(image_HW3, side))]
        if side in tiled:
            crops = tiles_of(height, width, tiles, side, most)
            parts[side] += [(crop, model.prepare(crop.of(image_HW3), side)) for crop in crops]
    return parts


def answer(model: SamClip, work: Mapping[str, Any], parts: Parts[ImageFeatures]) -> dict[str, Any]:
    """Return the columns that the work asks for."""
    config, row, tiling = model.config, dict[str, Any](), Tiling(*work.get("tiles", (0, 0)))
    runner = _Encoded(model, parts)
    if work["embed"]:
        row["embedding"] = pooled(parts[config.size_of("retrieval")][0][1])
    if work["labels"]:
        (scores,) = runner.run(Classify(work["labels"], work["top_k"]))
        row["labels"] = [vars(score) for score in scores]
    if work["semantic"]:
        found = runner.run(SegmentText(work["semantic"], work["background"], tiling=tiling))
        row["semantic"] = encode_label_map(found.label_map_HW, len(work["semantic"]))
    if work["text"] or work["everything"]:
        row["masks"] = [*_masks(runner, work, tiling)]
    if work["regions"]:
        with_regions = {crop: model.regions(part) for crop, part in parts[config.image_size]}
        row["regions"] = [*_regions(with_regions)]
        row["objects"] = runner.run(PackedObjects(tiling))
    for head in work.get("heads", ()):
        row[head.column] = head.answer(parts[head.size][0][1])
    return row


class _Encoded(Runner):
    """Runs programs about a picture that is encoded already, with its tiles."""

    def __init__(self, model: SamClip, parts: Parts[ImageFeatures]) -> None:
        super().__init__(model, None)
        self._parts = {side: dict(several) for side, several in parts.items()}

    def encode(self, step: Encode) -> ImageFeatures:
        return self._parts[step.side][step.crops[0] if step.crops else None]


def _masks(runner: Runner, work: Mapping[str, Any], tiling: Tiling) -> Iterator[dict[str, Any]]:
    masks = list[EverythingMask]()
    if work["text"]:
        prompts = dict(enumerate(map(TextPrompt, work["text"])))
        exclusive = work.get("exclusive", False)
        found = runner.run(FindObjects(prompts, work["min_score"], exclusive, tiling))
        for index in prompts:
            masks += best_of_each(found[index])
    if work["everything"]:
        points = runner.model.config.points_per_side
        every = runner.run(Everything(points, work["labels"], tiling=tiling))
        masks += every
    for mask in masks:
        yield _mask(mask, runs_of_logits(mask.geometry, mask.logits_hw, mask.crop))


def _regions(parts: Mapping[Crop | None, ImageFeatures]) -> Iterator[dict[str, Any]]:
    """Yield the regions, largest first, each with its CLIP vector; of tiles, each thing once."""
    kept = list[PlacedMask]()
    for crop, features in parts.items():
        placed = [*_placed(features, crop)]
        kept = of_everything([*kept, *placed]) if len(parts) > 1 else placed
    for one in kept:
        assert one.mask.region is not None
        vector_D = parts[one.mask.crop].regions.clip_RD[one.mask.region]
        yield {**_mask(one.mask, one.runs), "vector": unit(vector_D.astype(np.float32))}


def _placed(features: ImageFeatures, crop: Crop | None) -> Iterator[PlacedMask]:
    regions = features.regions
    for index in np.argsort(-regions.area_R, kind="stable"):
        mask = EverythingMask.of_region(features.geometry, regions, index)
        for one in place([mask], crop):
            light = replace(one.mask, logits_hw=objects.NO_LOGITS, region=int(index))
            yield PlacedMask(light, one.runs)


def _mask(found: EverythingMask, runs: Runs) -> dict[str, Any]:
    return {
        "label": found.label,
        "label_score": found.label_score,
        "predicted_iou": found.predicted_iou,
        "stability_score": found.stability,
        "area": runs.area,
        "box": [float(edge) for edge in runs.box],
        "size": [runs.height, runs.width],
        "counts": encode_runs(runs),
    }


def encode(
    model: SamClip, batch: Sequence[Parts[Prepared]], at_once: int
) -> list[Parts[ImageFeatures]]:
    """Encode prepared images, ``at_once`` images and tiles in one run of the encoder."""
    columns = {}
    for side in batch[0]:
        every = [frame for one in batch for _, frame in one[side]]
        starts = range(0, len(every), at_once)
        encoded = (model.encode_batch(every[start : start + at_once]) for start in starts)
        columns[side] = iter([features for several in encoded for features in several])
    return [
        {side: [(crop, next(columns[side])) for crop, _ in parts] for side, parts in one.items()}
        for one in batch
    ]
