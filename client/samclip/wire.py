"""Conversion between protobuf messages and the types of the client."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

import numpy as np

from samclip import mask_codecs
from samclip.mask_codecs import Encoded
from samclip.masks import Masks
from samclip.types import (
    Box,
    Boxes,
    Example,
    HeatMap,
    Hit,
    ListedItem,
    Mask,
    Panoptic,
    Prompt,
    Region,
    Segment,
    SemanticMap,
    Tiles,
)
from samclip.v1 import samclip_pb2 as pb

T = TypeVar("T")
Message = TypeVar("Message")
CHUNK_BYTES = 32 * 2**20  # per Index request: half of the maximum message size
CHUNK_ITEMS = 32
CHUNK_WITH_OBJECTS = 4  # the same with objects: each item takes seconds, and a request has a minute
CHUNK_IDS = 10_000  # per Delete request: the service's maximum


def tensor_to_array(tensor: pb.Tensor) -> np.ndarray:
    """Convert a tensor (little-endian, C order) to a read-only array of its dtype and shape."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def array_to_tensor(array: np.ndarray) -> pb.Tensor:
    """Convert an array to a tensor message."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return pb.Tensor(dtype=array.dtype.name, shape=array.shape, data=data.tobytes())


def request(kind: Callable[..., Message], **fields: Any) -> Message:
    """Return a message with these fields. Raises TypeError, which names the wrong one."""
    try:
        return kind(**fields)
    except TypeError:
        for name, value in fields.items():
            _check_type(kind, name, value)
        raise


def _check_type(kind: Any, name: str, value: Any) -> None:
    try:
        kind(**{name: value})
    except TypeError as error:
        field = kind.DESCRIPTOR.fields_by_name[name]
        kinds = {
            field.CPPTYPE_STRING: "a text",
            field.CPPTYPE_BOOL: "True or False",
            field.CPPTYPE_DOUBLE: "a number",
            field.CPPTYPE_FLOAT: "a number",
            field.CPPTYPE_INT32: "a whole number",
            field.CPPTYPE_MESSAGE: "texts under names, such as {'owner': 'ann'}",
        }
        expected = kinds.get(field.cpp_type, "another value")
        found = f"{value!r:.60} ({type(value).__name__})"
        raise TypeError(f"{name} is {found}: expected {expected}") from error


def name_model(request: Any, name: str) -> None:
    """Write the name of a model into a request that takes one; vectors go to the one of theirs."""
    fields = request.DESCRIPTOR.fields_by_name
    if name and "model" in fields and not ("made_by" in fields and request.HasField("made_by")):
        request.model = name


def texts(value: Iterable[str]) -> list[str]:
    """Return texts as a list; a string is one text, not a sequence of characters.

    Raises TypeError.
    """
    found = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    for each in found:
        if not isinstance(each, str):
            wrong = f"{each!r:.60} ({type(each).__name__})"
            raise TypeError(f'expected texts, such as ["a cat", "a dog"], found {wrong}')
    return found


def choice(kind: Any, what: str, name: str) -> str:
    """Return the name of an enum's value. Raises ValueError, which lists the names."""
    names = [key for key, _ in kind.items() if not key.endswith("UNSPECIFIED")]
    if str(name).upper() not in names:
        known = ", ".join(names).lower()
        raise ValueError(f"{what} is {name!r}: expected {known}")
    return name.upper()


def _rows(value: Iterable[Any], length: int, what: str) -> list[tuple[float, ...]]:
    """Return points or boxes as rows of ``length`` numbers; accepts a single row as well."""
    try:
        rows = np.atleast_2d(np.asarray(list(value), np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} has {length} numbers, found {value!r:.60}") from error
    if rows.size and rows.shape[1:] != (length,):
        raise ValueError(f"{what} has {length} numbers, found shape {rows.shape}")
    return [tuple(row) for row in rows.tolist() if row]


def prompts(given: Prompt, boxes: Boxes, asked: Sequence[str]) -> list[Prompt]:
    """Convert the arguments of ``segment``: one prompt per text, or one per box if several.

    given: what each prompt has besides them.
    """
    if not all(asked):
        raise ValueError("a text is empty: give the words for what to segment, or no text")
    boxes = cast(list[Box], _rows(boxes, 4, "a box (x_min, y_min, x_max, y_max)"))
    if len(boxes) > 1:
        drawn = given.mask_input is not None or given.mask is not None
        if len(given.points) or len(given.negative) or drawn or asked or given.examples:
            raise ValueError(
                "several boxes cannot be combined with points, a mask, text or like: give one, "
                "or, in Python, several prompts to segment_prompts"
            )
        return [Prompt(box=box) for box in boxes]
    box = boxes[0] if len(boxes) else None
    return [replace(given, box=box, text=text) for text in asked or [""]]


def prompt(value: Prompt) -> pb.Prompt:
    if not isinstance(value, Prompt):
        raise TypeError(f"expected a samclip.Prompt, found {type(value).__name__}")
    message = request(pb.Prompt, text=value.text, not_texts=texts(value.not_texts))
    for points, negative in ((value.points, False), (value.negative, True)):
        for x, y in _rows(points, 2, "a point (x, y)"):
            message.points.add(x=x, y=y, negative=negative)
    if value.box is not None:
        ((x_min, y_min, x_max, y_max),) = _rows(value.box, 4, "a box (x_min, y_min, x_max, y_max)")
        message.box.CopyFrom(pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    if value.mask_input is not None:
        message.mask_input.CopyFrom(array_to_tensor(np.asarray(value.mask_input, np.float32)))
    if value.mask is not None:
        message.mask.CopyFrom(_rle(value.mask))
    message.examples.extend(map(example, value.examples))
    return message


def examples(like: "Example | Mask | Iterable[Example | Mask]") -> list[Example]:
    """Return one example or several; a mask is an example in the image that is asked."""
    several = [*like] if isinstance(like, Iterable) and not isinstance(like, str) else [like]
    for one in several:
        if not isinstance(one, Example | Mask):
            raise ValueError(
                f"an example is a mask or samclip.Example(image, box=…), found {type(one).__name__}"
            )
    return [Example(mask=one) if isinstance(one, Mask) else one for one in several]


def everything(
    labels: Iterable[str],
    vocabulary: str,
    min_label_score: float | None,
    points_per_side: int,
    several: Tiles,
    encoding: str,
) -> pb.SegmentEverythingRequest:
    return request(
        pb.SegmentEverythingRequest,
        labels=texts(labels),
        vocabulary=vocabulary,
        min_label_score=min_label_score,
        points_per_side=points_per_side,
        tiles=tiles(several),
        encoding=choice(pb.MaskEncoding, "encoding", encoding),
    )


def tiles(value: Tiles) -> int:
    """Return the number of tiles of a request: -1 for "auto"."""
    return -1 if value == "auto" else int(value)


def panoptic(message: pb.Panoptic) -> Panoptic:
    found = [like(Segment, segment) for segment in message.segments_info]
    segments = [replace(segment, bbox=cast(Box, tuple(segment.bbox))) for segment in found]
    return Panoptic(message.png, mask_codecs.decode_ids(message.png), segments)


def areas(boxes: Boxes, mask_arrays: Iterable["np.ndarray | Mask"]) -> list[pb.Area]:
    """Convert boxes, then bool masks H×W of the image's size, to areas."""
    found = []
    for x_min, y_min, x_max, y_max in _rows(boxes, 4, "a box (x_min, y_min, x_max, y_max)"):
        box = pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
        found.append(pb.Area(box=box))
    return found + [pb.Area(rle=_rle(mask)) for mask in mask_arrays]


def _rle(mask: "np.ndarray | Mask") -> pb.CocoRle:
    """Encode bool H×W, or a mask of an earlier reply. Raises ValueError for anything else."""
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype != bool:
        raise ValueError(f"a mask is {array.dtype} {array.shape}: expected bool H×W")
    height, width = array.shape
    return pb.CocoRle(height=height, width=width, counts=mask_codecs.encode_rle(array))


def example(value: Example) -> pb.Example:
    """Convert an example without its image. Raises ValueError unless it has one place."""
    found = areas(
        () if value.box is None else value.box, () if value.mask is None else [value.mask]
    )
    points = [pb.Point(x=x, y=y) for x, y in _rows(value.points, 2, "a point (x, y)")]
    if len(found) + bool(points) != 1:
        raise ValueError("an example takes exactly one of box=, points= and mask=")
    return pb.Example(
        box=found[0].box if found and found[0].HasField("box") else None,
        mask=found[0].rle if found and found[0].HasField("rle") else None,
        points=pb.Points(points=points) if points else None,
        negative=value.negative,
    )


def mask(message: pb.Mask, info: pb.ImageInfo, photograph: bytes) -> Mask:
    box = message.box
    return Mask(
        data=_mask_data(message, info),
        box=(box.x_min, box.y_min, box.x_max, box.y_max),
        area=message.area,
        predicted_iou=message.predicted_iou,
        stability_score=message.stability_score,
        label=message.label,
        label_score=message.label_score,
        object_score=message.object_score if message.HasField("object_score") else None,
        photograph=photograph,
    )


def masks(messages: Iterable[pb.Mask], info: pb.ImageInfo, photograph: bytes) -> Masks:
    return Masks(mask(message, info, photograph) for message in messages)


def results(reply: pb.SegmentResponse, photograph: bytes) -> list[Masks]:
    """Return the masks of each prompt."""
    return [
        _of_things(masks(result.masks, reply.image, photograph), result.things)
        for result in reply.results
    ]


def _of_things(found: Masks, things: Sequence[int]) -> Masks:
    """Return masks that know the best one of their thing."""
    best: dict[int, Mask] = {}
    return Masks(
        mask if (first := best.setdefault(thing, mask)) is mask else replace(mask, best=first)
        for mask, thing in zip(found, things, strict=True)
    )


def _mask_data(message: pb.Mask, info: pb.ImageInfo) -> np.ndarray | Encoded:
    """Return a mask of any encoding as it came, logits as float32 h×w."""
    kind = message.WhichOneof("data")
    match kind:
        case "rle":
            return Encoded(kind, message.rle.counts, message.rle.height, message.rle.width)
        case "png":
            return Encoded(kind, message.png, info.height, info.width)
        case "polygons":
            rings = [np.array(ring.xy, np.float32) for ring in message.polygons.polygons]
            return Encoded(kind, rings, info.height, info.width)
        case "logits":
            return tensor_to_array(message.logits).astype(np.float32)
    raise ValueError(f"a mask has an unknown encoding ({kind}): update this client")


def like(kind: type[T], message: Any) -> T:
    """Return a dataclass of ``types`` from the message whose fields have the same names."""
    return kind(**{each.name: getattr(message, each.name) for each in fields(cast(Any, kind))})


def semantic_map(
    reply: pb.SegmentTextResponse, labels: Sequence[str], photograph: bytes
) -> SemanticMap:
    regions = []
    for region in reply.regions:
        of_label = mask(region.mask, reply.image, photograph)
        of_label = replace(of_label, label=region.label, label_score=region.score)
        regions.append(Region(region.label, region.score, region.area, of_label))
    return SemanticMap(mask_codecs.decode_label_map(reply.label_map_png), tuple(labels), regions)


def heat_map(reply: pb.ExplainResponse, label: str) -> HeatMap:
    return HeatMap(label, mask_codecs.decode_levels(reply.heat_png), reply.low, reply.high)


def hits(reply: pb.SearchResponse) -> list[Hit]:
    return [_hit(hit) for hit in reply.hits]


def _hit(hit: pb.Hit) -> Hit:
    metadata = dict(hit.metadata)
    if not hit.HasField("mask"):
        return Hit(hit.id, hit.score, metadata)
    box = (hit.box.x_min, hit.box.y_min, hit.box.x_max, hit.box.y_max)
    return Hit(hit.id, hit.score, metadata, box, mask(hit.mask, pb.ImageInfo(), b""))


def listed_items(reply: pb.ListItemsResponse) -> list[ListedItem]:
    return [
        ListedItem(
            *(item.id, dict(item.metadata), item.objects),
            tensor_to_array(item.vector) if item.HasField("vector") else None,
        )
        for item in reply.items
    ]


def index_item(name: str, key: str, encoded: bytes, metadata: Mapping[str, str]) -> pb.IndexItem:
    """Return an item with its file if there is one: images to index are rarely cached.

    Raises ValueError if the name is not valid UTF-8.
    """
    image = pb.Image(encoded=encoded) if encoded else pb.Image(key=key)
    item = request(pb.IndexItem, image=image, metadata=metadata)
    try:
        item.id = name
    except UnicodeEncodeError:  # file names may hold any bytes
        raise ValueError("the id is not valid UTF-8: rename the file") from None
    return item


def chunks(items: Iterable[pb.IndexItem], most: int) -> Iterator[list[pb.IndexItem]]:
    """Yield the items in groups of at most ``most`` that each fit in one message."""
    chunk: list[pb.IndexItem] = []
    size = 0
    for item in items:
        size += item.ByteSize()
        if chunk and (len(chunk) == most or size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], item.ByteSize()
        chunk.append(item)
    if chunk:
        yield chunk
