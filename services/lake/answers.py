"""The answers about one image, as a row of the table ``images``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from samclip_core.answers.everything import of_regions
from samclip_core.answers.request import check_has_masks
from samclip_core.answers.zero_shot import pooled, unit
from samclip_core.encoder import Prepared
from samclip_core.io.masks import encode_label_map, encode_runs, runs_of_logits
from samclip_core.model import SamClip
from samclip_core.types import EverythingMask, ImageFeatures
from services.lake.heads import OwnHead
from services.retrieval import objects


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
    features = {size: model.encode(grey_HW3, size) for size in sizes(model, work)}
    answer(model, work, features)


def opened(model: SamClip, work: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the work with its heads, which are specifications, loaded. Raises as ``OwnHead``."""
    return {**work, "heads": [OwnHead(spec, model) for spec in work.get("heads", ())]}


def answer(
    model: SamClip, work: Mapping[str, Any], features: Mapping[int, ImageFeatures]
) -> dict[str, Any]:
    """Return the columns that the work asks for; ``features`` by the side of the frame."""
    config, row = model.config, dict[str, Any]()
    if work["embed"]:
        row["embedding"] = pooled(features[config.size_of("retrieval")])
    if work["labels"]:
        of = features[config.size_of("classify")]
        scores = model.classify(of, work["labels"], top_k=work["top_k"])
        row["labels"] = [vars(score) for score in scores]
    if work["semantic"]:
        found = model.segment_text(
            features[config.size_of("semantic")], work["semantic"], work["background"]
        )
        row["semantic"] = encode_label_map(found.label_map_HW, len(work["semantic"]))
    if work["text"] or work["everything"]:
        row["masks"] = [*_masks(model, work, features[config.image_size])]
    if work["regions"]:
        whole = model.regions(features[config.image_size])
        row["regions"] = [*_regions(whole)]
        row["objects"] = objects.pack(whole.regions, whole.geometry)
    for head in work.get("heads", ()):
        row[head.column] = head.answer(features[head.size])
    return row


def _masks(
    model: SamClip, work: Mapping[str, Any], features: ImageFeatures
) -> Iterator[dict[str, Any]]:
    if work["text"]:
        for found in model.find(features, work["text"], work["min_score"]):
            yield from map(_mask, found)
    if work["everything"]:
        yield from map(_mask, model.segment_everything(features, labels=work["labels"]))


def _regions(found: ImageFeatures) -> Iterator[dict[str, Any]]:
    """Yield the regions, largest first, each with its CLIP vector."""
    order = np.argsort(-found.regions.area_R, kind="stable")
    vector_RD = unit(found.regions.clip_RD[order].astype(np.float32))
    for mask, vector_D in zip(of_regions(found, None), vector_RD, strict=True):
        yield {**_mask(mask), "vector": vector_D}


def _mask(found: EverythingMask) -> dict[str, Any]:
    runs = runs_of_logits(found.geometry, found.logits_hw, found.crop)
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
    model: SamClip, batch: Sequence[Mapping[int, Prepared]]
) -> list[dict[int, ImageFeatures]]:
    """Encode prepared images, given by the side of the frame, as one batch per side."""
    columns = {size: model.encode_batch([one[size] for one in batch]) for size in batch[0]}
    return [{size: found[at] for size, found in columns.items()} for at in range(len(batch))]
