"""Export the networks of a checkpoint to ONNX graphs that contain no weights.

The graphs refer to the safetensors files, which store each weight once, in float16 or float32.
Shape letters as in ``samclip_core.engine.base``.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedOpsetsPass
from torch import Tensor, nn
from torch.export import Dim

from samclip_core import guarded
from samclip_core.config import SamClipConfig
from samclip_core.io import checkpoint
from samclip_core.nn.network import SamClipNet
from samclip_core.nn.text_encoder import TextEncoder
from samclip_core.nn.vit import PATCH, with_positions

OPSET = 20
LARGEST_CONSTANT = 1024
"""Maximum size of a constant to fold at export, in elements; the runtime computes larger ones."""
Dims = Mapping[str, Mapping[int, Any]]


class _ImageEncoder(nn.Module):
    def __init__(self, net: SamClipNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        encoded = self.net.encode(pixels.float(), sizes)
        return tuple(output for output in encoded if output is not None)


class _MaskDecoder(nn.Module):
    def __init__(self, net: SamClipNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        sam: Tensor,
        image: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        encoder = self.net.prompt_encoder
        sparse_PND, dense_PDhw = encoder.embed(points, labels, masks, has_mask)
        return self.net.mask_decoder.decode(sam, encoder.positions(), sparse_PND, dense_PDhw, image)


class _TextEncoder(nn.Module):
    def __init__(self, net: TextEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)


def describe(model: ir.Model) -> dict[str, Any]:
    """Return data type and shape of each input and output, for the manifest."""

    def of(values: Sequence[ir.Value]) -> dict[str, str]:
        return {str(value.name): f"{value.dtype}{value.shape}" for value in values}

    return {"inputs": of(model.graph.inputs), "outputs": of(model.graph.outputs)}


def image_encoder(net: SamClipNet, side: int) -> ir.Model:
    """Export image encoder and Head_CLIP: ``pixels`` uint8 B×3×S×S and ``sizes`` int64 B×2.

    ``side`` is S: the graph contains the position tables interpolated to it. ``net`` has all parts
    of its checkpoint; without masks, the graph has no output ``sam``.
    """
    batch = Dim("batch")
    inputs = {
        "pixels": torch.zeros(2, 3, side, side, dtype=torch.uint8),
        "sizes": torch.tensor([[side, side // 2], [side // 3, side]]),
    }
    shapes = {"pixels": {0: batch}, "sizes": {0: batch}}
    encoder = _ImageEncoder(with_positions(net, side // PATCH))
    sam = ("sam",) if hasattr(net, "mask_decoder") else ()
    fine = ("sam_fine",) if getattr(net.image_encoder, "gives_fine_maps", False) else ()
    return trace(encoder, inputs, (*sam, "clip_dense", "clip_pooled", *fine), shapes)


def mask_decoder(net: SamClipNet, config: SamClipConfig) -> ir.Model:
    """Export prompt encoder and mask decoder: ``sam``, then the fields of ``PromptBatch``."""
    grid, mask = config.grid, net.prompt_encoder.mask_input_size[0]
    images, prompts, points = Dim("images"), Dim("prompts"), Dim("points")
    inputs = {
        "sam": torch.zeros(2, config.embed_dim + config.fine_dim, grid, grid),
        "image": torch.tensor([0, 1, 1]),
        "points": torch.zeros(3, 2, 2),
        "labels": torch.tensor([[1, -1], [2, 3], [0, 1]]),
        "masks": torch.zeros(3, 1, mask, mask),
        "has_mask": torch.tensor([0.0, 1.0, 1.0]),
    }
    shapes = {
        "sam": {0: images},
        "image": {0: prompts},
        "points": {0: prompts, 1: points},
        "labels": {0: prompts, 1: points},
        "masks": {0: prompts},
        "has_mask": {0: prompts},
    }
    return trace(_MaskDecoder(net), inputs, ("logits", "iou"), shapes)


def text_encoder(encoder: TextEncoder, config: SamClipConfig) -> ir.Model:
    """Export the text tower: ``ids`` int64 T×N, where N is fixed if the tower pads to it."""
    ids_TN = torch.from_numpy(encoder.tokenizer(["a photo of a dog", "a cat"]))
    shapes: dict[str, dict[int, Any]] = {"ids": {0: Dim("texts")}}
    if not encoder.one_length:
        shapes["ids"][1] = Dim("tokens", max=config.text.max_tokens)
    return trace(_TextEncoder(encoder), {"ids": ids_TN}, ("text",), shapes)


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], shapes: Dims
) -> ir.Model:
    """Trace a module; its parameters stay initializers under their names."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dict(shapes),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        onnxscript.optimizer.fold_constants(
            program.model,
            input_size_limit=LARGEST_CONSTANT,
            output_size_limit=LARGEST_CONSTANT,
            should_fold=_should_fold,
        )
    model = program.model
    onnxscript.optimizer.remove_unused_nodes(model)
    ClearMetadataAndDocStringPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return model


def _should_fold(node: ir.Node) -> bool | None:
    """Refuse to fold weights, which would then differ from those in the safetensors file."""
    constants = [value.const_value for value in node.inputs if value is not None]
    return False if any(c is not None and c.size > LARGEST_CONSTANT for c in constants) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings, and disable torch's fused transformer layers for the export."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def refer_to_weights(model: ir.Model, directory: Path) -> None:
    """Make each initializer that is stored in a safetensors file refer to its bytes there."""
    places = {
        key: (file, *place)
        for file in (checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS)
        for key, place in _places(directory / file).items()
    }
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        key = name.removeprefix("net.")
        if key not in places:
            continue
        file, dtype, first, length = places[key]
        assert value.const_value is not None
        if value.const_value.size * dtype.itemsize != length:
            continue  # a position table for another side
        shape = ir.Shape(value.const_value.shape.numpy())
        stored = ir.ExternalTensor(
            file, first, length, dtype, shape=shape, name=name, base_dir=directory
        )
        if not np.array_equal(stored.numpy().astype(np.float32), value.const_value.numpy()):
            continue  # changed by quantisation
        if dtype == value.dtype:
            value.const_value = stored
            continue
        uncast = ir.Value(name=f"{name}.stored", shape=shape, type=ir.TensorType(dtype))
        uncast.const_value = stored
        cast = ir.node("Cast", [uncast], {"to": value.dtype}, name=f"{name}.cast")
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.initializers.add(uncast)
        graph.insert_before(graph[0], cast)


def _places(path: Path) -> dict[str, tuple[ir.DataType, int, int]]:
    """Return data type, offset and length in bytes of each tensor in a safetensors file."""
    with guarded.open_regular(path) as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = guarded.parsed(file.read(min(header_length, guarded.MOST_BYTES)))
    header.pop("__metadata__", None)
    places = {}
    for key, about in header.items():
        start, end = about["data_offsets"]
        places[key] = _DTYPES[about["dtype"]], 8 + header_length + start, end - start
    return places


_DTYPES = {"F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT, "I64": ir.DataType.INT64}
