"""Quantisation of a small random graph with each kind of layer in the encoders."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from samclip_core.engine.quantise import KEEP_FLOAT, exact_session, quantise
from samclip_core.io import checkpoint

SIDE, WIDTH = 16, 8
WEIGHTS = {
    "net.stem.weight": (WIDTH, 3, 3, 3),
    "net.depthwise.weight": (WIDTH, 1, 3, 3),
    "net.linear.weight": (WIDTH, WIDTH),
    "net.folded.weight": (WIDTH, 5),
    "net.clip_head.weight": (5, 4),
}


@pytest.fixture
def model() -> ModelProto:
    """Build a graph of Conv, Pad, depthwise Conv, a residual Add and several MatMuls."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0.05, 0.3, shape) for name, shape in WEIGHTS.items()}
    arrays["net.stem.bias"] = rng.normal(size=WIDTH)
    initializers = [
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    ]
    initializers += [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
        numpy_helper.from_array(np.float32(0), "low"),
        numpy_helper.from_array(np.float32(6), "high"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "net.stem.weight", "net.stem.bias"], ["stem"]),
        helper.make_node("Clip", ["stem", "low", "high"], ["clipped"]),
        helper.make_node("Pad", ["clipped", "pads", "low"], ["padded"]),
        helper.make_node("Conv", ["padded", "net.depthwise.weight"], ["deep"], group=WIDTH),
        helper.make_node("Add", ["deep", "clipped"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["tokens"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["net.linear.weight"], ["linear.weight"], perm=[1, 0]),
        helper.make_node("MatMul", ["tokens", "linear.weight"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "net.folded.weight"], ["sam"]),
        helper.make_node("MatMul", ["sam", "net.clip_head.weight"], ["clip"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 14, 14, width])
            for name, width in (("sam", 5), ("clip", 4))
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def samples() -> list[dict[str, NDArray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(8)]


def test_outputs_stay_nearly_the_same(model: ModelProto, samples: list[dict[str, NDArray]]) -> None:
    before, after = _run(model, samples), _run(quantise(model, samples), samples)
    for name in before:
        assert not np.array_equal(after[name], before[name])
        assert _noise(before[name], after[name]) < 0.05


def test_layers_read_int8_and_named_ones_stay_float(
    model: ModelProto, samples: list[dict[str, NDArray]]
) -> None:
    quantised = quantise(model, samples)
    pairs = Counter(node.op_type for node in quantised.graph.node)
    assert pairs["QuantizeLinear"] == pairs["DequantizeLinear"] == 4 + 4  # activations and weights
    read = {name for node in quantised.graph.node for name in node.input}
    assert "net.clip_head.weight.quantised" not in read
    assert "net.stem.weight.quantised" in read
    assert "net.stem.weight.quantised" not in {
        name for node in quantise(model, samples, "stem").graph.node for name in node.input
    }


def test_rounded_weights_do_not_shift_the_mean() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (1, 3, SIDE, SIDE)).astype(np.float32)  # exact in uint8
    x[0, 0, 0, :2] = 0, 255
    weight = numpy_helper.from_array(rng.normal(size=(4, 3, 1, 1)).astype(np.float32), "w")
    shapes = {"x": [1, 3, SIDE, SIDE], "sam": [1, 4, SIDE, SIDE]}
    x_info, sam_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    nodes = [helper.make_node("Conv", ["x", "w"], ["sam"])]
    graph = helper.make_graph(nodes, "layer", [x_info], [sam_info], [weight])
    layer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    before = _run(layer, [{"x": x}], ["sam"])["sam"]
    after = _run(quantise(layer, [{"x": x}]), [{"x": x}], ["sam"])["sam"]
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after.mean((0, 2, 3)), before.mean((0, 2, 3)), atol=1e-3)


def test_without_samples_or_layers_nothing_is_quantised(
    model: ModelProto, samples: list[dict[str, NDArray]]
) -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantise(model, [])
    with pytest.raises(ValueError, match=r"every convolution .* matches 'net'"):
        quantise(model, samples, "net")


def _run(
    model: ModelProto,
    samples: list[dict[str, NDArray]],
    outputs: Sequence[str] = ("sam", "clip"),
) -> dict[str, NDArray]:
    session = exact_session(model.SerializeToString())
    batch = np.concatenate([sample["x"] for sample in samples])
    return dict(zip(outputs, session.run(list(outputs), {"x": batch}), strict=True))


def _noise(before: NDArray, after: NDArray) -> float:
    """Return the relative error in the L2 norm."""
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def test_the_bundled_graph_is_float_where_its_family_says_so() -> None:
    """Another family's expression once kept ``edge``'s lateral layers in float, too."""
    directory = checkpoint.resolve("edge")
    keep = re.compile(f"{KEEP_FLOAT}|{checkpoint.read_config(directory).family.keep_float}")
    graph = onnx.load(directory / checkpoint.INT8_GRAPH, load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    int8 = {name.removesuffix(".scale") for name in names if name.endswith(".weight.scale")}
    assert {f"net.image_encoder.laterals.{n}.weight" for n in range(3)} <= int8
    assert not [name for name in int8 if keep.search(name)]
