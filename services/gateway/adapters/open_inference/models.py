"""The models of the Open Inference Protocol and their tensors, answered by the applications."""

import reprlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidPrompt, InvalidRequest, NotFound
from services.gateway.adapters.adapter import Applications, image_of
from services.request.context import RequestContext
from services.request.limits import MAX_FORM_PARTS
from services.request.transit import aside

VERSION = "1"
"""The version of the default model; that of any other model is its name."""

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
"""The protocol's datatypes that the models use, besides BYTES."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PREFIX = 4  # bytes of the length in front of an element of a raw BYTES tensor, little-endian
MAX_ELEMENTS = MAX_FORM_PARTS  # of one input: more than the applications accept
Sent = tuple[str, str, Sequence[int], Any]
"""A tensor as it came: its name, datatype and shape, and its raw bytes or its values."""
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Spec:
    """A tensor of a model; a side of -1 may have any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def read(self, datatype: str, shape: Sequence[int], data: Any) -> NDArray[Any]:
        """Return a tensor sent as raw bytes or as values. Raises InvalidRequest if it is another.

        Values are a list of JSON's or protobuf's, nested or flat, in which an image is base64, a
        data URI or bytes. BYTES become objects of type bytes.
        """
        few = shape[: len(self.shape) + 1]  # of any number
        sides = zip(self.shape, few, strict=False)
        fits = len(few) == len(self.shape) and all(
            type(side) is int and side >= 0 and own in (-1, side) for own, side in sides
        )
        if datatype != self.datatype or not fits or prod(few) > MAX_ELEMENTS:
            raise InvalidRequest(
                f"input {self.name!r} is {datatype[:20]} {reprlib.repr([*few])}, expected {self} "
                f"of at most {MAX_ELEMENTS:,} elements"
            )
        try:
            if self.datatype == "BYTES":
                array = self._elements(data, prod(shape))
            elif isinstance(data, bytes):
                array = np.frombuffer(data, DTYPES[datatype])
            else:
                array = _numbers(data, DTYPES[datatype])
            return array.reshape(shape)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise InvalidRequest(f"input {self.name!r} is not {self}: {error}") from error

    def _elements(self, data: Any, most: int) -> NDArray[np.object_]:
        if isinstance(data, bytes):
            elements = _split(self.name, data, most)
        else:
            flat = data if isinstance(data, list) else [data]
            elements = [_bytes(self.name, value) for value in flat]
        array = np.empty(len(elements), np.object_)
        array[:] = elements
        return array

    def __str__(self) -> str:
        return f"{self.datatype} {[*self.shape]}"


def described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return the name, datatype and shape of an output, as both transports have them."""
    return {"name": name, "datatype": _NAMES[array.dtype], "shape": array.shape}


def _split(name: str, data: bytes, most: int) -> list[bytes]:
    elements, start = list[bytes](), 0
    while start < len(data):
        end = start + PREFIX + int.from_bytes(data[start : start + PREFIX], "little")
        if start + PREFIX > len(data) or end > len(data) or len(elements) == most:
            raise InvalidRequest(f"input {name!r} ends within an element, or has more than {most}")
        elements.append(data[start + PREFIX : end])
        start = end
    return elements


def _numbers(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return JSON's or protobuf's numbers. Raises ValueError for anything else."""
    found = np.array(values, object)  # any other dtype makes numbers of booleans beside numbers
    if not {*map(type, found.flat)} <= ({int, float} if dtype.kind == "f" else {int}):
        raise ValueError("not all of its values are such numbers")
    with np.errstate(over="raise"):
        return found.astype(dtype)


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if name == "image":
        return image_of(value, "input 'image'").encoded
    if not isinstance(value, str):
        raise InvalidRequest(f"input {name!r} has an element that is not a string")
    return value.encode()


def text_of(element: bytes, name: str) -> str:
    """Return an element as text. Raises InvalidRequest."""
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} is not UTF-8: {error.reason}") from error


@dataclass(frozen=True)
class InferenceModel:
    """A model: the application that answers it, its tensors, and the function that asks."""

    application: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    infer: Callable[[Applications, Tensors, RequestContext], Awaitable[Tensors]]
    optional: frozenset[str] = frozenset()

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the fields of a ModelMetadataResponse."""
        tensors = {"inputs": [*map(vars, self.inputs)], "outputs": [*map(vars, self.outputs)]}
        return {"name": name, "versions": [VERSION], "platform": "samclip", **tensors}

    def read(self, sent: Iterable[Sent]) -> Tensors:
        """Return the inputs by name. Raises InvalidRequest for others, or one given twice."""
        specs, given = {spec.name: spec for spec in self.inputs}, {}
        for name, datatype, shape, data in sent:
            if name not in specs:
                raise InvalidRequest(f"unknown input {name[:80]!r}; expected {', '.join(specs)}")
            if name in given:
                raise InvalidRequest(f"input {name!r} is given twice")
            given[name] = specs[name].read(datatype, shape, data)
        return given

    async def answer(
        self, asked: Applications, given: Tensors, wanted: Sequence[str], context: RequestContext
    ) -> Tensors:
        """Return the wanted outputs, or all if none is named.

        Raises InvalidRequest if an input is missing or an output unknown.
        """
        for spec in self.inputs:
            if spec.name not in given and spec.name not in self.optional:
                raise InvalidRequest(f"no input {spec.name!r}: send {spec}")
        names = [spec.name for spec in self.outputs]
        for name in wanted:
            if name not in names:
                raise InvalidRequest(f"unknown output {name[:80]!r}; expected {', '.join(names)}")
        outputs = await self.infer(asked, given, context)
        return {name: outputs[name] for name in wanted or names}


async def _embed_image(asked: Applications, given: Tensors, context: RequestContext) -> Tensors:
    _, _, (embedding_D,) = await asked.embed([], [_image(given)], context)
    return {"embedding": embedding_D}


async def _embed_text(asked: Applications, given: Tensors, context: RequestContext) -> Tensors:
    texts = [text_of(text, "text") for text in given["text"]]
    return {"embedding": np.asarray((await asked.embed(texts, [], context))[1])}


async def _classify(asked: Applications, given: Tensors, context: RequestContext) -> Tensors:
    labels = [text_of(label, "labels") for label in given["labels"]]
    request = pb.ClassifyRequest(images=[_image(given)], labels=labels)
    reply = await asked.call("Classify", request, context)
    score = {scored.label: scored.score for scored in reply.results[0].scores}
    return {"scores": np.array([score[label] for label in labels], np.float32)}


async def _segment(asked: Applications, given: Tensors, context: RequestContext) -> Tensors:
    prompt = pb.Prompt(points=_points(given))
    if "box" in given:
        prompt.box.CopyFrom(pb.Box(**dict(zip(BOX, given["box"].tolist(), strict=True))))
    request = pb.SegmentRequest(image=_image(given), prompts=[prompt])
    reply = await asked.call("Segment", request, context)
    (mask,) = reply.results[0].masks
    rle, iou = mask.rle, mask.predicted_iou
    context.reply.reserved.hold(rle.height * rle.width)
    by_columns_HW = await aside(context.priority, decode_rle, rle.counts, rle.height, rle.width)
    mask_HW = await aside(context.priority, np.ascontiguousarray, by_columns_HW)
    return {"mask": mask_HW.view(np.uint8), "predicted_iou": np.array([iou], np.float32)}


BOX = ("x_min", "y_min", "x_max", "y_max")


def _image(given: Tensors) -> pb.Image:
    return pb.Image(encoded=given["image"][0])


def _points(given: Tensors) -> list[pb.Point]:
    points_N2, labels_N = given.get("points"), given.get("point_labels")
    if points_N2 is None and labels_N is None:
        return []
    if points_N2 is None or labels_N is None or len(points_N2) != len(labels_N):
        raise InvalidPrompt("points and point_labels need the same length: send one label each")
    if not np.isin(labels_N, (0, 1)).all():
        raise InvalidPrompt("point_labels are 1 for inside the object, 0 for outside")
    return [
        pb.Point(x=x, y=y, negative=not label)
        for (x, y), label in zip(points_N2.tolist(), labels_N.tolist(), strict=True)
    ]


_IMAGE = Spec("image", "BYTES", (1,))
MODELS = {
    "embed-image": InferenceModel(
        "backbone", (_IMAGE,), (Spec("embedding", "FP32", (-1,)),), _embed_image
    ),
    "embed-text": InferenceModel(
        "backbone",
        (Spec("text", "BYTES", (-1,)),),
        (Spec("embedding", "FP32", (-1, -1)),),
        _embed_text,
    ),
    "classify": InferenceModel(
        "classification",
        (_IMAGE, Spec("labels", "BYTES", (-1,))),
        (Spec("scores", "FP32", (-1,)),),
        _classify,
    ),
    "segment": InferenceModel(
        "segmentation",
        (
            _IMAGE,
            Spec("points", "FP32", (-1, 2)),
            Spec("point_labels", "INT32", (-1,)),
            Spec("box", "FP32", (4,)),
        ),
        (Spec("mask", "UINT8", (-1, -1)), Spec("predicted_iou", "FP32", (1,))),
        _segment,
        frozenset({"points", "point_labels", "box"}),
    ),
}


async def find(
    name: str, version: str, asked: Applications, context: RequestContext
) -> tuple[InferenceModel, RequestContext]:
    """Return a model, and the context of a request for this version. Raises NotFound."""
    if name not in MODELS:
        raise NotFound(f"no model {name[:80]!r}; the models are {', '.join(MODELS)}")
    if version in ("", VERSION):
        return MODELS[name], context
    try:
        return MODELS[name], await asked.naming(version, context)
    except NotFound as error:
        raise NotFound(
            f"model {name!r} has no version {version[:80]!r}, only {VERSION}, which the default "
            "model answers, and the names of GET /models"
        ) from error
