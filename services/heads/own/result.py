"""The answer of a head of one's own as a message: counted first, then encoded.

H W pixels of the original picture.
"""

import io
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from samclip.v1 import samclip_pb2 as pb

from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask
from services.batching.priority import Priority
from services.batching.threads import Threads
from services.request import wire
from services.request.limits import Reply, check_mask_pixels, check_most
from services.request.messages import MAX_DEPTH, MAX_WHOLE

MAX_VALUES = 100_000
"""Values of one answer besides arrays, pictures and masks: a second of work in all."""
MAX_PICTURE_PIXELS = 2**26
"""Pixels of all pictures of one answer, which take a core some seconds: those of a large image."""
OTHER_COLOURS = ("CMYK", "YCbCr", "HSV")  # which PNG does not have
DTYPES = ("float16", "float32", "int8", "uint8")
Mask: TypeAlias = "NDArray[np.bool_] | EverythingMask"


class Values:
    """The values of one answer as JSON has them; masks, arrays and pictures are apart.

    Raises TypeError and ValueError for what an answer cannot contain: a fault of the head.
    """

    def __init__(self, answer: Mapping[str, Any], geometry: Geometry, reply: Reply):
        self.geometry, self.reply = geometry, reply
        self.masks: list[Mask] = []
        self.tensors: list[NDArray[Any]] = []
        self.pictures: list[Image.Image] = []
        self._count = self._pixels = 0
        self.values = self._convert(answer, MAX_DEPTH)

    def _convert(self, value: Any, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or depth < 0:
            raise ValueError(
                f"the answer has more than {MAX_VALUES:,} values, or lists in more than "
                f"{MAX_DEPTH} lists: return an array, or less"
            )
        match value:
            case None | bool() | np.bool_():
                return value if value is None else bool(value)
            case str():
                self.reply.add(len(value.encode()))  # of half a surrogate pair: raises ValueError
                return value
            case int() | float() | np.integer() | np.floating():
                return _number(value.item() if isinstance(value, np.generic) else value)
            case Mapping():
                return {self._key(k): self._convert(each, depth - 1) for k, each in value.items()}
            case list() | tuple():
                return [self._convert(each, depth - 1) for each in value]
            case EverythingMask(geometry=found, crop=crop):
                whole = crop and (crop.picture_height, crop.picture_width)
                self._check_size(whole or (found.height, found.width))
                return _put("$mask", self.masks, value)
            case Image.Image():
                self._pixels += value.width * value.height
                check_most(self._pixels, "the pictures have {:,} pixels", MAX_PICTURE_PIXELS)
                return _put("$picture", self.pictures, value)
            case np.ndarray():
                return self._array(value)
        raise TypeError(f"the answer has a {type(value).__name__}, which JSON cannot hold")

    def _array(self, array: NDArray[Any]) -> dict[str, int]:
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("an array is masked, which its reader would not see: fill it")
        if array.dtype == np.bool_:
            self._check_size(array.shape)
            return _put("$mask", self.masks, array)
        as_sent = np.dtype("float32") if array.dtype == np.float64 else array.dtype
        if as_sent.name not in DTYPES:
            raise TypeError(
                f"an array has the dtype {array.dtype}: expected {', '.join(DTYPES)}, or bool for "
                "a mask"
            )
        self.reply.add(array.size * as_sent.itemsize)  # before a copy: a view may repeat few bytes
        array = array.astype(as_sent, copy=False)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("an array has values that are not finite")
        return _put("$tensor", self.tensors, array)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        size = (self.geometry.height, self.geometry.width)
        if shape != size:
            raise ValueError(
                f"a mask has the shape {shape}, the picture {size}: "
                "features.geometry.logits_to_original enlarges a map of the frame"
            )

    def _key(self, name: Any) -> str:
        if not isinstance(name, str) or name.startswith("$"):
            raise TypeError(f"{name!r} cannot be a key: expected a text that does not begin with $")
        self.reply.add(len(name.encode()))
        return name


def _number(value: float) -> float:
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) > MAX_WHOLE):
        raise ValueError(f"the answer has the number {value}: expected a finite one, up to 2**53")
    return value


def _put(kind: str, others: list[Any], value: Any) -> dict[str, int]:
    others.append(value)
    return {kind: len(others) - 1}


def to_mask(mask: Mask, encoding: int) -> pb.Mask:
    """Return a mask of an answer as a message."""
    if isinstance(mask, EverythingMask):
        return wire.to_everything_mask(mask, encoding)
    return wire.to_mask(mask, encoding)


def _to_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    as_png = picture.convert("RGB") if picture.mode in OTHER_COLOURS else picture
    as_png.save(file, "PNG", compress_level=1)  # more would take thrice the time
    return file.getvalue()


async def encoded(
    workers: Threads,
    priority: Priority,
    answer: Mapping[str, Any],
    geometry: Geometry,
    encoding: int,
    reply: Reply,
) -> pb.AskResponse:
    """Return the message of an answer, whose bytes count in ``reply``.

    Raises TypeError and ValueError for a fault of the head, InvalidRequest for too many bytes.
    """

    def begun() -> tuple[Values, pb.AskResponse]:
        values, made = Values(answer, geometry, reply), pb.AskResponse()
        made.tensors.extend(map(wire.to_tensor, values.tensors))
        made.result.update(values.values)
        return values, made

    values, made = await workers.run(priority, "encode", begun)
    check_mask_pixels(len(values.masks), geometry, encoding)
    if values.masks:
        masks = reply.within(to_mask(mask, encoding) for mask in values.masks)
        made.masks.extend(await workers.drain(priority, "encode", masks))
    for picture in values.pictures:
        made.pictures.append(await workers.run(priority, "encode", _to_png, picture))
        reply.add(len(made.pictures[-1]))
    return made
