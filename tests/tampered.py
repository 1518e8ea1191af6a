"""Checkpoints with other graphs of the same weights, from an attacker or another export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from samclip_core.io import checkpoint

CONSTANTS = 7
UPPER, LOWER = 6.0, 0.3


def change_graph(directory: Path) -> None:
    """Change a few constants of the image encoder's graph; the manifest stays as it is."""
    path = directory / "image_encoder.onnx"
    graph = onnx.load(path, load_external_data=False)
    bounds = [tensor for tensor in graph.graph.initializer if _is_bound(tensor)]
    for tensor in bounds[:CONSTANTS]:
        lower = numpy_helper.from_array(np.array(LOWER, np.float32), tensor.name)
        tensor.CopyFrom(lower)
    onnx.save(graph, path)


def _is_bound(tensor: onnx.TensorProto) -> bool:
    """Return whether this is the upper bound of an activation."""
    weight = tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.dims
    return not weight and bool(numpy_helper.to_array(tensor) == UPPER)


def list_again(directory: Path, *, opset: int = 20) -> str:
    """Make the manifest agree with the graphs that are there; return their digest."""
    return checkpoint.seal_graphs(directory, opset, checkpoint.graphs(directory))


def edit(directory: Path, section: dict[str, Any]) -> None:
    """Replace the manifest's section about the graphs, and nothing else."""
    path = directory / checkpoint.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"graphs": section}))
