"""All conversion between the messages of ``samclip.v1`` and the library's types.

Shape letters: D width, h w grid, H W pixels of the original image.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from samclip.mask_codecs import encode_polygons
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Area
from samclip_core.answers.examples import Place
from samclip_core.answers.rough import RoughMask
from samclip_core.answers.zero_shot import unit
from samclip_core.errors import ImageTooLarge, InvalidImage, InvalidPrompt, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io import masks, panoptic
from samclip_core.io.masks import runs_of_logits
from samclip_core.types import (
    EverythingMask,
    ImageFeatures,
    MaskLogits,
    Prompt,
    Region,
    Score,
    SemanticMap,
    TextPrompt,
)
from services.cache.entry import Entries, Entry
from services.request.limits import MAX_OUTPUTS, check_most

ENCODED = {
    pb.SAM: "sam_Dhw",
    pb.SAM_FINE: "fine_Dhw",
    pb.CLIP_DENSE: "clip_dense_Dhw",
    pb.CLIP_POOLED: "clip_pooled_D",
}
"""The field of ImageFeatures for each output of the image encoder."""
FIELDS = {**ENCODED, pb.REGIONS: "regions_N"}
"""The field of ImageFeatures for each output of Embed."""

_NAMED = {pb.Output.Name(output): output for output in FIELDS}

KEY_LENGTH = 64
"""Characters of an image key, a SHA-256 digest in hex. A longer string names no image."""

MAX_SIDES = 8
"""Dimensions of a tensor: the product of a million sides would take minutes."""

_DTYPES = {"float16": "<f2", "float32": "<f4", "int8": "i1", "uint8": "u1"}


def model_id(model: pb.ModelInfo) -> str:
    """Return an id with both digests, for protocols that have one name for a model."""
    return "-".join(filter(None, (f"{model.name}@{model.digest[:12]}", model.graphs[:12])))


# ------------------------------------------------------------------------------------ images


def image_source(image: pb.Image, max_bytes: int) -> bytes | str:
    """Return the encoded file, or the key of an image that was sent earlier.

    Raises InvalidImage and ImageTooLarge.
    """
    if image.WhichOneof("source") == "key":
        if len(image.key) > KEY_LENGTH:
            raise InvalidImage(
                f"the image key has {len(image.key):,} characters, expected {KEY_LENGTH}: "
                "send the key of an earlier answer, or the image"
            )
        return image.key
    encoded = image.encoded  # each access copies it
    if not encoded:
        raise InvalidImage("the image is empty: send a JPEG, PNG or WebP file, or an image key")
    found, advice = "the image file has {:,} bytes", "send a smaller one"
    check_most(len(encoded), found, max_bytes, advice, ImageTooLarge)
    return encoded


def image_info(key: str, geometry: Geometry, cached: bool) -> pb.ImageInfo:
    return pb.ImageInfo(key=key, width=geometry.width, height=geometry.height, cached=cached)


# ------------------------------------------------------------------------------------ tensors


def to_tensor(array: NDArray[Any], name: str = "", inline: bool = True) -> pb.Tensor:
    """Convert an array to little-endian, C order; without ``inline`` only dtype and shape."""
    dtype = array.dtype.name
    data = np.ascontiguousarray(array, _DTYPES[dtype]).tobytes() if inline else b""
    return pb.Tensor(name=name, dtype=dtype, shape=array.shape, data=data)


def from_tensor(tensor: pb.Tensor) -> NDArray[Any]:
    """Return a read-only view of the data. Raises InvalidRequest if it does not match the shape."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidRequest(
            f"tensor has dtype {tensor.dtype[:40]!r}, expected one of {', '.join(_DTYPES)}"
        )
    if len(tensor.shape) > MAX_SIDES:
        raise InvalidRequest(f"tensor has {len(tensor.shape)} dimensions, at most {MAX_SIDES}")
    shape = tuple(tensor.shape)
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if any(side < 0 for side in shape) or expected != len(tensor.data):
        raise InvalidRequest(
            f"tensor of shape {shape} and dtype {tensor.dtype} needs {expected} bytes, "
            f"got {len(tensor.data)}"
        )
    try:
        return np.frombuffer(tensor.data, dtype).reshape(shape)
    except ValueError as error:  # an empty tensor whose other sides are too long for numpy
        raise InvalidRequest(f"tensor of shape {shape} is invalid: {error}") from error


def to_embedding(output: pb.Output, entry: Entry, inline: bool) -> pb.Tensor:
    """Return one tensor of an EmbedResponse; CLIP_POOLED is normalised, then rounded to float16."""
    array = entry.array
    if output == pb.CLIP_POOLED:
        array = unit(array).astype(np.float16)
    return to_tensor(array, pb.Output.Name(output), inline)


def to_outputs(requested: Sequence[pb.Output], masks: bool = True) -> tuple[pb.Output, ...]:
    """Return the outputs of an EmbedRequest without duplicates, in order.

    None means all of the image encoder but SAM_FINE, and no SAM without ``masks``.
    """
    check_most(len(requested), "{:,} outputs", MAX_OUTPUTS, "name each once")
    for output in requested:
        if output not in FIELDS:
            raise InvalidRequest(f"output {output} is unknown, expected one of {', '.join(_NAMED)}")
    left_out = (pb.SAM_FINE,) if masks else (pb.SAM_FINE, pb.SAM)
    every = (output for output in ENCODED if output not in left_out)
    return tuple(dict.fromkeys(requested or every))


def to_entries(response: pb.EmbedResponse, size: int) -> Entries:
    """Return the embeddings of an inline EmbedResponse; ``size`` is the model frame's side."""
    geometry = Geometry(response.image.height, response.image.width, size, response.model.squash)
    return {
        _NAMED[tensor.name]: Entry(from_tensor(tensor), geometry) for tensor in response.tensors
    }


def to_features(entries: Entries, dtype: str) -> ImageFeatures:
    """Return the features of one image from one or more outputs, computed in ``dtype``."""
    geometry = next(iter(entries.values())).geometry
    arrays: dict[str, Any] = {
        FIELDS[output]: unit(entry.array) if output == pb.CLIP_POOLED else entry.array
        for output, entry in entries.items()
    }
    return ImageFeatures(geometry, **arrays, dtype=dtype)


# ------------------------------------------------------------------------------------ prompts


def to_prompt(prompt: pb.Prompt) -> Prompt:
    """Convert points, box and mask input, without checking them against an image."""
    box = prompt.box
    return Prompt(
        points=tuple((point.x, point.y) for point in prompt.points),
        negative=tuple(point.negative for point in prompt.points),
        box=(box.x_min, box.y_min, box.x_max, box.y_max) if prompt.HasField("box") else None,
        mask_input_hw=_mask_input(prompt.mask_input) if prompt.HasField("mask_input") else None,
    )


def _mask_input(tensor: pb.Tensor) -> NDArray[np.float32]:
    try:
        return from_tensor(tensor).astype(np.float32)
    except InvalidRequest as error:
        raise InvalidPrompt(f"mask_input: {error}") from error


def to_placed(prompt: pb.Prompt) -> Prompt | RoughMask:
    """Convert as ``to_prompt``, and a mask with what is beside it.

    Raises InvalidPrompt if the mask is broken.
    """
    if not prompt.HasField("mask"):
        return to_prompt(prompt)
    rle = prompt.mask
    try:
        return RoughMask(masks.decode_runs(rle.counts, rle.height, rle.width), to_prompt(prompt))
    except ValueError as error:
        raise InvalidPrompt(f"the mask is broken: {error}") from error


def to_text_prompt(prompt: pb.Prompt) -> TextPrompt:
    """Convert a text with what is not wanted, and the points and box that say where it is."""
    placed = prompt.points or prompt.HasField("box") or prompt.HasField("mask_input")
    return TextPrompt(prompt.text, tuple(prompt.not_texts), to_prompt(prompt) if placed else None)


def to_areas(areas: Sequence[pb.Area], geometry: Geometry) -> Iterator[Area]:
    """Convert the areas of an image one at a time.

    Raises InvalidRequest, with the number of the area, for an RLE that is broken or of another
    size; nothing else is checked against the image.
    """
    for index, area in enumerate(areas):
        box, rle = area.box, area.rle
        if area.WhichOneof("shape") == "box":
            yield Area(box=(box.x_min, box.y_min, box.x_max, box.y_max))
            continue
        yield Area(mask=_to_runs(rle, geometry, f"area {index}"))


def to_place(example: pb.Example, name: str, geometry: Geometry) -> Place:
    """Convert the place of an example. Raises InvalidRequest, with its name, as ``to_areas``."""
    match example.WhichOneof("place"):
        case "mask":
            return _to_runs(example.mask, geometry, name)
        case "box":
            return to_prompt(pb.Prompt(box=example.box))
    return to_prompt(pb.Prompt(points=example.points.points))


def _to_runs(rle: pb.CocoRle, geometry: Geometry, what: str) -> masks.Runs:
    if (rle.height, rle.width) != (geometry.height, geometry.width):
        raise InvalidRequest(
            f"{what}: the mask has {rle.width}×{rle.height} pixels, the image "
            f"{geometry.width}×{geometry.height}: send a mask of the image's size"
        )
    try:
        return masks.decode_runs(rle.counts, rle.height, rle.width)
    except ValueError as error:
        raise InvalidRequest(f"{what}: {error}") from error


# ------------------------------------------------------------------------------------ masks


def to_mask(
    mask_HW: NDArray[np.bool_], encoding: int, logits_hw: NDArray[np.float32] | None = None
) -> pb.Mask:
    """Encode a mask of the original image, with box and area; LOGITS requires ``logits_hw``."""
    if encoding == pb.RLE:
        return _to_rle(masks.find_runs(mask_HW))
    message = _boxed(masks.pixel_box(mask_HW), int(np.count_nonzero(mask_HW)))
    match encoding:
        case pb.PNG:
            message.png = masks.encode_png(mask_HW)
        case pb.POLYGONS:
            message.polygons.CopyFrom(_to_polygons(mask_HW))
        case pb.LOGITS if logits_hw is not None:
            message.logits.CopyFrom(to_tensor(logits_hw))
        case _:
            raise InvalidRequest("this answer has no logits: choose RLE, PNG or POLYGONS")
    return message


def _boxed(box: masks.Box, area: int) -> pb.Mask:
    x_min, y_min, x_max, y_max = box
    return pb.Mask(box=pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max), area=area)


def _to_rle(runs: masks.Runs) -> pb.Mask:
    message = _boxed(runs.box, runs.area)
    counts = masks.encode_runs(runs)
    message.rle.CopyFrom(pb.CocoRle(height=runs.height, width=runs.width, counts=counts))
    return message


def _to_polygons(mask_hw: NDArray[np.bool_], corner: tuple[int, int] = (0, 0)) -> pb.Polygons:
    """Trace a mask, or the crop of one with this top-left corner (x, y)."""
    rings = [(ring_K2 + corner).reshape(-1) for ring_K2 in encode_polygons(mask_hw)]
    return pb.Polygons(polygons=[pb.Polygon(xy=ring) for ring in rings])


def to_prompt_masks(found: MaskLogits, encoding: int) -> Iterator[pb.Mask]:
    """Yield the masks of one prompt, enlarging each only when it is needed."""
    for index in range(len(found.logits_Mhw)):
        yield _to_prompt_mask(found, index, encoding)  # holds no pixels while its turn is over


def _to_prompt_mask(found: MaskLogits, index: int, encoding: int) -> pb.Mask:
    mask_HW, stability = found.enlarge(index)
    mask = to_mask(mask_HW, encoding, found.logits_Mhw[index])
    mask.predicted_iou, mask.stability_score = float(found.predicted_iou_M[index]), stability
    mask.MergeFrom(pb.Mask(object_score=found.object_score))  # None: not set
    return mask


def to_everything_mask(found: EverythingMask, encoding: int) -> pb.Mask:
    """Encode a mask with its scores; an RLE without enlarging the logits."""
    if encoding == pb.RLE:
        mask = _to_rle(runs_of_logits(found.geometry, found.logits_hw, found.crop))
    else:
        mask = to_mask(found.mask_HW, encoding, found.logits_hw.astype(np.float32))
    mask.predicted_iou, mask.stability_score = found.predicted_iou, found.stability
    mask.label, mask.label_score = found.label, found.label_score
    return mask


def to_panoptic(
    found: Sequence[EverythingMask], geometry: Geometry, labels: Sequence[str]
) -> pb.Panoptic:
    """Return one picture of all masks, of the size of ``geometry``; the smallest are on top."""
    picture = panoptic.paint(found, geometry.height, geometry.width)
    category = {label: index for index, label in enumerate(labels, start=1)}
    segments = [
        pb.PanopticSegment(
            id=segment.id,
            category_id=category.get(found[segment.index].label, 0),
            area=segment.area,
            bbox=segment.bbox,
            label=found[segment.index].label,
        )
        for segment in picture.segments
    ]
    return pb.Panoptic(png=picture.png, segments_info=segments)


def to_regions(found: SemanticMap, encoding: int) -> Iterator[pb.Region]:
    """Yield the regions, each encoded only within its box if the encoding allows it."""
    runs = masks.LabelRuns(found.label_map_HW)
    for region in found.regions:
        mask = _to_region_mask(region, runs.of(region.index), encoding)
        mask.label, mask.label_score = region.label, region.score
        yield pb.Region(label=region.label, score=region.score, area=mask.area, mask=mask)


def _to_region_mask(region: Region, runs: masks.Runs, encoding: int) -> pb.Mask:
    if encoding == pb.RLE:
        return _to_rle(runs)
    if encoding != pb.POLYGONS:  # the others store every pixel of the image
        return to_mask(region.mask_HW, encoding)
    message = _boxed(runs.box, region.area)
    x_min, y_min, x_max, y_max = runs.box
    crop_hw = region.label_map_HW[y_min:y_max, x_min:x_max] == region.index
    message.polygons.CopyFrom(_to_polygons(crop_hw, (x_min, y_min)))
    return message


# ------------------------------------------------------------------------------------ scores


def to_scores(scores: Sequence[Score]) -> list[pb.Score]:
    return [pb.Score(label=s.label, score=s.score, similarity=s.similarity) for s in scores]
