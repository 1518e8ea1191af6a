"""Post-training quantisation of an image encoder's float graph to int8.

A quantised layer reads a feature map as uint8 and its weight as int8. Both stay float in the graph,
each followed by a QuantizeLinear and DequantizeLinear pair, which the runtime folds into the layer.
So weights stay initializers under their names, and a checkpoint stores them once. ONNX Runtime's
own quantiser takes a weight behind a Transpose, as in every linear layer of a ViT, for a map.

Shape letters: C channels of a map, O channels of a layer's output, I of its input, G groups of a
convolution.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

KEEP_FLOAT = r"clip_head\."
"""Weights of layers that stay in float in every model, because a softmax over concepts amplifies
errors; ``Family.keep_float`` has those of the image encoder."""


class _Layer(NamedTuple):
    """A Conv, or a MatMul with a weight, and the names of the tensors to quantise for it."""

    node: NodeProto
    map_reader: NodeProto
    """The layer itself, or the Pad before it."""
    map: str
    weight_reader: NodeProto
    """The layer itself, or the Transpose before it."""
    weight: str
    weight_OI: NDArray[np.float32]
    """Or O×I×kernel."""
    output_axis: int
    """Axis of O in the stored weight."""


class _MapRange(NamedTuple):
    """Range and channel means of a map over the samples."""

    low: float
    high: float
    mean_C: NDArray[np.float32]


def quantise(
    model: ModelProto, samples: Iterable[Mapping[str, NDArray]], keep_float: str = KEEP_FLOAT
) -> ModelProto:
    """Return a copy of the model with its convolutions and linear layers in int8.

    ``samples`` are a few hundred inputs like those to be served. ``keep_float`` is a regular
    expression: a layer stays in float if its weight's name contains a match. Raises ValueError if
    there are no samples, or no layers to quantise.
    """
    quantised = ModelProto()
    quantised.CopyFrom(model)
    layers = [layer for layer in _layers(quantised) if not re.search(keep_float, layer.weight)]
    if not layers:
        raise ValueError(
            f"every convolution and linear layer matches {keep_float!r}, so none becomes int8: "
            "choose a pattern that matches fewer"
        )
    _rewrite(quantised, layers, _observe(quantised, layers, samples))
    onnx.checker.check_model(quantised)
    return quantised


def _layers(model: ModelProto) -> list[_Layer]:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    layers = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul"):
            continue
        map_reader = _before(node, 0, "Pad", makers)
        weight_reader = _before(node, 1, "Transpose", makers)
        weight = weight_reader.input[0 if weight_reader is not node else 1]
        if weight not in weights:
            continue  # a product of two maps, as in attention
        array = numpy_helper.to_array(weights[weight])
        stored_IO = node.op_type == "MatMul" and weight_reader is node
        weight_OI, axis = (array.T, 1) if stored_IO else (array, 0)
        source = map_reader.input[0]
        layers.append(_Layer(node, map_reader, source, weight_reader, weight, weight_OI, axis))
    return layers


def _before(node: NodeProto, index: int, kind: str, makers: Mapping[str, NodeProto]) -> NodeProto:
    """Return the node of this kind that produces an input, or else the node itself."""
    maker = makers.get(node.input[index])
    return maker if maker is not None and maker.op_type == kind else node


def _observe(
    model: ModelProto, layers: list[_Layer], samples: Iterable[Mapping[str, NDArray]]
) -> dict[str, _MapRange]:
    """Run the float model; return the range and channel means of each map to quantise.

    The range is the mean of the samples' extremes, so that an outlier does not coarsen the scale
    for all others.
    """
    channels = {layer.map: 1 if layer.node.op_type == "Conv" else -1 for layer in layers}
    session = _session_with_outputs(model, list(channels))
    rows: dict[str, list[NDArray]] = {name: [] for name in channels}
    for sample in samples:
        for name, array in zip(rows, session.run(list(rows), dict(sample)), strict=True):
            map_C = np.moveaxis(array, channels[name], 0).reshape(array.shape[channels[name]], -1)
            rows[name].append(np.concatenate([[map_C.min(), map_C.max()], map_C.mean(axis=1)]))
    if not all(rows.values()):
        raise ValueError("no samples to calibrate with: a few hundred are needed")
    means = {name: np.stack(row).mean(axis=0) for name, row in rows.items()}
    return {name: _MapRange(mean[0], mean[1], mean[2:]) for name, mean in means.items()}


def _session_with_outputs(model: ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    probe = ModelProto()
    probe.CopyFrom(model)
    outputs = {output.name for output in probe.graph.output}
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in outputs
    )
    return exact_session(probe.SerializeToString())


def exact_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """Open a graph or its file; int8 layers are computed in float, and alike on every processor.

    The runtime's own int8 layers overflow where the processor has no int8 instructions.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _rewrite(model: ModelProto, layers: list[_Layer], ranges: Mapping[str, _MapRange]) -> None:
    """Insert pairs after maps and weights, connect the layers to them, and correct the outputs."""
    new: dict[str, list[NodeProto]] = {}  # nodes by the tensor that they follow
    for layer in layers:
        scale_O, correction_O = _weight_scale(layer, ranges[layer.map].mean_C)
        new[layer.map] = _pair(model, layer.map, *_map_scale(ranges[layer.map]))
        zero_O = np.zeros(scale_O.shape, np.int8)
        new[layer.weight] = _pair(model, layer.weight, scale_O, zero_O, layer.output_axis)
        _rename(layer.map_reader.input, layer.map, f"{layer.map}.dequantised")
        _rename(layer.weight_reader.input, layer.weight, f"{layer.weight}.dequantised")
        output = layer.node.output[0]
        layer.node.output[0] = f"{output}.uncorrected"
        new[layer.node.output[0]] = [_correct(model, layer, output, correction_O)]
    graph = model.graph
    given = [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)]
    nodes = list(_following(given, new))
    for node in graph.node:
        nodes += [node, *_following(node.output, new)]
    del graph.node[:]
    graph.node.extend(nodes)


def _following(names: Iterable[str], new: Mapping[str, list[NodeProto]]) -> Iterator[NodeProto]:
    """Yield the new nodes after these tensors, and recursively those after their outputs."""
    for name in names:
        for node in new.get(name, ()):
            yield node
            yield from _following(node.output, new)


def _map_scale(range_: _MapRange) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return scale and zero point of a map; they represent zero, the padding value, exactly."""
    low, high = min(range_.low, 0), max(range_.high, 0)
    scale = (high - low) / 255 or 1
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)


def _weight_scale(
    layer: _Layer, mean_C: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scale of a layer's weight, and the loss of mean output caused by rounding it."""
    weight_OI = layer.weight_OI.reshape(*layer.weight_OI.shape[:2], -1)
    largest_O = np.abs(weight_OI).max(axis=(1, 2))
    scale_O = np.where(largest_O > 0, largest_O / 127, 1).astype(np.float32)
    scale_O11 = scale_O[:, None, None]
    lost_OI = (weight_OI - np.round(weight_OI / scale_O11) * scale_O11).sum(axis=2)
    groups = len(mean_C) // lost_OI.shape[1]
    lost_GOI = lost_OI.reshape(groups, -1, lost_OI.shape[1])
    correction_O = np.einsum("goi,gi->go", lost_GOI, mean_C.reshape(groups, -1)).reshape(-1)
    return scale_O, correction_O.astype(np.float32)


def _pair(
    model: ModelProto, name: str, scale: NDArray, zero_point: NDArray, axis: int = 1
) -> list[NodeProto]:
    """Make the QuantizeLinear and DequantizeLinear nodes of a tensor."""
    steps = [
        _constant(model, f"{name}.scale", scale),
        _constant(model, f"{name}.zero_point", zero_point),
    ]
    codes, values = f"{name}.quantised", f"{name}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [name, *steps], [codes], codes, axis=axis),
        helper.make_node("DequantizeLinear", [codes, *steps], [values], values, axis=axis),
    ]


def _correct(
    model: ModelProto, layer: _Layer, output: str, correction_O: NDArray[np.float32]
) -> NodeProto:
    """Make the node that adds the loss of mean output caused by rounding."""
    shape = (-1, *[1] * (layer.weight_OI.ndim - 2))
    correction = _constant(model, f"{output}.correction", correction_O.reshape(shape))
    return helper.make_node("Add", [layer.node.output[0], correction], [output], f"{output}.add")


def _constant(model: ModelProto, name: str, array: NDArray) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def _rename(inputs: MutableSequence[str], old: str, new: str) -> None:
    inputs[:] = [new if name == old else name for name in inputs]
