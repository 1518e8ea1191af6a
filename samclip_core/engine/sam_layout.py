"""SAM's own inputs and outputs around a checkpoint's graph of its mask decoder, without torch.

The result is one file with its weights, as segment_anything's export script makes it: the best mask
of a prompt. SAM's tools take every model's frame for ``FRAME`` pixels, so points are in that frame,
whatever the side of the checkpoint's. Further outputs, for programs that enlarge masks themselves:
``logits`` and ``iou`` of all four masks, and ``frame_size``, the side of the frame they cover.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import ArrayLike, DTypeLike

from samclip_core import guarded
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint

FRAME = 1024
"""Side of the frame to which tools scale points, in pixels."""
GRAPH = "mask_decoder.onnx"
MOST_BYTES = 2**26
"""Of the decoder's weights: SAM's own have 16 MB."""

# The part of ONNX's messages that is read or made here; protobuf keeps all other fields as they
# are. A field of a message has its name in place of a type.
_MESSAGES = {
    "Model": {7: "graph Graph"},
    "Graph": {1: "node* Node", 5: "initializer* Tensor", 11: "input* Value", 12: "output* Value"},
    "Node": {1: "input* string", 2: "output* string", 4: "op_type string", 5: "attribute* Given"},
    "Given": {1: "name string", 3: "i int64", 4: "s bytes", 8: "ints* int64", 20: "type int32"},
    "Tensor": {
        **{1: "dims* int64", 2: "data_type int32", 8: "name string", 9: "raw_data bytes"},
        **{13: "external_data* Entry", 14: "data_location int32"},
    },
    "Entry": {1: "key string", 2: "value string"},
    "Value": {1: "name string", 2: "type Type"},
    "Type": {1: "tensor_type Sized"},
    "Sized": {1: "elem_type int32", 2: "shape Shape"},
    "Shape": {1: "dim* Dim"},
    "Dim": {1: "dim_value int64", 2: "dim_param string"},
}
_FLOAT, _INT64 = 1, 7
_TYPES = {np.dtype(np.float32): _FLOAT, np.dtype(np.int64): _INT64}


@cache
def _message(name: str) -> Any:
    """Return the class of a message of ONNX."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"onnx.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="onnx", package="onnx", syntax="proto2")
    of = descriptor_pb2.FieldDescriptorProto
    for each, fields in _MESSAGES.items():
        message = file.message_type.add(name=each)
        for number, text in fields.items():
            label, kind = text.split()
            field = message.field.add(name=label.rstrip("*"), number=number)
            field.label = of.LABEL_REPEATED if label.endswith("*") else of.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = of.TYPE_MESSAGE, f".onnx.{kind}"
            else:
                field.type = of.Type.Value(f"TYPE_{kind.upper()}")
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def decoder(directory: Path, digest: str) -> bytes:
    """Return the decoder of the checkpoint with this digest, which ``check_sam_layout`` accepts.

    Raises CheckpointError if the directory has another checkpoint, no graphs or damaged ones.
    """
    config, found = checkpoint.read_sealed_config(directory)
    if found != digest:
        raise CheckpointError(f"{directory} has another checkpoint now: load it again")
    content = guarded.read(checkpoint.verified_graph(directory, GRAPH))
    try:
        model = _message("Model").FromString(content)
        _include(model.graph.initializer, checkpoint.verified(directory, checkpoint.WEIGHTS))
    except (DecodeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / GRAPH} is damaged ({error}): export it again"
        ) from error
    return around(model.SerializeToString(), config)


def _include(tensors: Sequence[Any], weights: Path) -> None:
    """Put the weights that tensors refer to into them. Raises ValueError for other data."""
    left = MOST_BYTES
    with guarded.open_regular(weights) as file:
        for tensor in tensors:
            about = {entry.key: entry.value for entry in tensor.external_data}
            if not about:
                continue
            start, length = int(about.get("offset", 0)), int(about.get("length", -1))
            if about.get("location") != weights.name or not 0 <= length <= left:
                raise ValueError("it refers to other data than the weights")
            left -= length
            file.seek(start)
            tensor.raw_data = file.read(length)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


class _Around:
    """The nodes and constants that are put around a graph."""

    def __init__(self) -> None:
        self.nodes, self.constants = list[Any](), list[Any]()

    def constant(self, name: str, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        array = np.asarray(value, dtype)
        kind, raw = _TYPES[array.dtype], array.tobytes()
        tensor = _message("Tensor")(dims=array.shape, data_type=kind, name=name, raw_data=raw)
        self.constants.append(tensor)
        return name

    def add(self, operation: str, *inputs: str, into: str, **given: int | str | list[int]) -> str:
        node = _message("Node")(op_type=operation, input=inputs, output=[into])
        for name, value in given.items():
            if isinstance(value, int):
                node.attribute.add(name=name, i=value, type=2)
            elif isinstance(value, str):
                node.attribute.add(name=name, s=value.encode(), type=3)
            else:
                node.attribute.add(name=name, ints=value, type=7)
        self.nodes.append(node)
        return into

    def resize(self, map_: str, sizes: str, into: str) -> str:
        """Resize bilinearly, as torch and OpenCV do."""
        return self.add("Resize", map_, "", "", sizes, into=into, mode="linear")


def around(graph: bytes, config: SamClipConfig) -> bytes:
    """Return a graph of ``samclip_core.engine.graphs.mask_decoder`` with SAM's names.

    ``image_embeddings`` 1×D×h×w, ``point_coords`` 1×N×2, ``point_labels`` 1×N, ``mask_input``
    1×1×m×m of any m, ``has_mask_input`` 1 and ``orig_im_size`` 2 (height, width), all float32 →
    ``masks`` logits 1×1×height×width, ``iou_predictions`` 1×1, ``low_res_masks`` 1×1×m×m.
    """
    model = _message("Model").FromString(graph)
    body, before, after = model.graph, _Around(), _Around()
    fitted = _prepare(before, config)
    _finish(after, config, fitted)
    for node in body.node:  # SAM has another thing of this name
        node.input[:] = ["around/masks" if name == "masks" else name for name in node.input]
    nodes = [*before.nodes, *body.node, *after.nodes]
    for name in ("node", "input", "output"):
        body.ClearField(name)
    body.node.extend(nodes)
    body.initializer.extend([*before.constants, *after.constants])
    dim, grid, side = config.embed_dim, config.grid, config.logits_side
    body.input.extend(
        [
            _value("image_embeddings", 1, dim, grid, grid),
            _value("point_coords", 1, "num_points", 2),
            _value("point_labels", 1, "num_points"),
            _value("mask_input", 1, 1, "mask_height", "mask_width"),
            _value("has_mask_input", 1),
            _value("orig_im_size", 2),
        ]
    )
    body.output.extend(
        [
            _value("masks", 1, 1, "height", "width"),
            _value("iou_predictions", 1, 1),
            _value("low_res_masks", 1, 1, side, side),
            _value("logits", 1, 4, side, side),
            _value("iou", 1, 4),
            _value("frame_size", 1),
        ]
    )
    return bytes(model.SerializeToString())


def _value(name: str, *sides: int | str) -> Any:
    value = _message("Value")(name=name)
    value.type.tensor_type.elem_type = _FLOAT
    for side in sides:
        known = {"dim_param" if isinstance(side, str) else "dim_value": side}
        value.type.tensor_type.shape.dim.add(**known)
    return value


def _prepare(made: _Around, config: SamClipConfig) -> str:
    """Make the graph's inputs of SAM's; return the picture's height and width in the frame."""
    made.constant("image", [0])
    made.add("Identity", "image_embeddings", into="sam")
    made.add("Cast", "point_labels", into="labels", to=_INT64)
    made.add("Cast", "orig_im_size", into="around/size", to=_INT64)
    made.add("ReduceMax", "around/size", into="around/longest", keepdims=1)
    sides = {"around/own": config.prompt_size, "around/tools": FRAME}
    fitted = [_fitted(made, name, side) for name, side in sides.items()]
    scaled = [made.add("Cast", one, into=f"{one}/float", to=_FLOAT) for one in fitted]
    made.add("Div", *scaled, into="around/scale")
    made.add("Gather", "around/scale", made.constant("around/xy", [1, 0]), into="around/scale_xy")
    made.add("Mul", "point_coords", "around/scale_xy", into="points")
    # The edge has no flag: no mask is one of zeros.
    made.add("Mul", "mask_input", "has_mask_input", into="around/mask")
    side = config.logits_side
    made.resize(
        "around/mask", made.constant("around/side", [1, 1, side, side]), into="around/masks"
    )
    made.add("Identity", "has_mask_input", into="has_mask")
    return fitted[0]


def _fitted(made: _Around, name: str, side: int) -> str:
    """Return a picture's (height, width) in a frame, as ``Geometry`` computes it."""
    made.add("Mul", "around/size", made.constant(f"{name}/twice", 2 * side), into=f"{name}/product")
    made.add("Add", f"{name}/product", "around/longest", into=f"{name}/sum")
    made.add("Mul", "around/longest", made.constant(f"{name}/two", 2), into=f"{name}/divisor")
    made.add("Div", f"{name}/sum", f"{name}/divisor", into=f"{name}/quotient")
    return made.add("Max", f"{name}/quotient", made.constant(f"{name}/one", 1), into=name)


def _finish(made: _Around, config: SamClipConfig, fitted: str) -> None:
    """Choose the best mask as SAM does, and enlarge it to the picture's size."""
    reward = made.constant("around/reward", [[1000, 0, 0, 0]], np.float32)
    made.add("Shape", "point_labels", into="around/points", start=1)
    made.add("Cast", "around/points", into="around/count", to=_FLOAT)
    made.add(
        "Sub", "around/count", made.constant("around/few", 2.5, np.float32), into="around/many"
    )
    made.add("Mul", "around/many", reward, into="around/rewards")
    made.add("Add", "iou", "around/rewards", into="around/score")
    made.add("ArgMax", "around/score", into="around/best", axis=1, keepdims=0)
    made.add("Gather", "logits", "around/best", into="low_res_masks", axis=1)
    made.add("Gather", "iou", "around/best", into="iou_predictions", axis=1)
    side = config.prompt_size
    made.add("Identity", made.constant("around/of", [side], np.float32), into="frame_size")
    frame = made.constant("around/frame", [1, 1, side, side])
    made.resize("low_res_masks", frame, into="around/enlarged")
    corner, axes = made.constant("around/corner", [0, 0]), made.constant("around/axes", [2, 3])
    made.add("Slice", "around/enlarged", corner, fitted, axes, into="around/picture")
    made.add(
        "Concat", made.constant("around/ones", [1, 1]), "around/size", into="around/sizes", axis=0
    )
    made.resize("around/picture", "around/sizes", into="masks")
