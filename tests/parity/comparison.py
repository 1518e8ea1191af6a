"""Comparison of our answers with those of the original modules, and with our graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from segment_anything import SamPredictor

from samclip_core.engine import graphs
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.types import MaskSet, Prompt

TOLERANCE = 1e-4  # of the largest value
LOGITS_TOLERANCE = 1e-3
MASK_IOU = 0.999
HALF = 2**-11  # relative error of a number in float16


def assert_near(
    found: Any, expected: Any, rtol: float = 0, atol: float = TOLERANCE, largest: float = 0
) -> None:
    """Compare arrays, with ``atol`` relative to the ``largest`` value, by default of ``expected``.

    They are not degenerate.
    """
    found, expected = np.asarray(found), np.asarray(expected).astype(np.float32)
    assert found.shape == expected.shape
    assert expected.std() > 0 or expected.size == 1
    atol *= largest or np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


def two(model: SamClip, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and sizes of a batch of the image and of its upper left part."""
    pictures = [model.prepare(image), model.prepare(image[:400, :200])]
    sizes = [(p.geometry.input_height, p.geometry.input_width) for p in pictures]
    return np.stack([p.pixels_3SS for p in pictures]), np.array(sizes, np.int64)


def assert_graph_agrees(directory: Path, model: SamClip, image: np.ndarray) -> None:
    """Compare the graph of a checkpoint's image encoder with torch, on a batch."""
    pixels, sizes = two(model, image)
    graph = ir.to_proto(graphs.image_encoder(load_net(directory), model.config.image_size))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    outputs = session.run(None, {"pixels": pixels, "sizes": sizes})
    encoded = (each for each in model.engine.encode(pixels, sizes) if each is not None)
    for found, expected in zip(outputs, encoded, strict=True):
        assert_near(found, expected)


def prompts(height: int, width: int, mask_input_hw: np.ndarray) -> list[Prompt]:
    """Return prompts of every kind, and combinations of kinds, for a picture of this size."""
    inside, outside = (0.4 * width, 0.3 * height), (0.9 * width, 0.85 * height)
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.95 * height)
    return [
        Prompt(points=(inside,)),
        Prompt(points=(inside, outside, (0.0, 0.0)), negative=(False, True, True)),
        Prompt(box=box),
        Prompt(points=(outside,), negative=(True,), box=box),
        Prompt(mask_input_hw=mask_input_hw),
        Prompt(points=(inside,), box=box, mask_input_hw=mask_input_hw),
        Prompt(points=(outside, inside)),
    ]


def ask_official(
    predictor: SamPredictor, prompt: Prompt, multimask: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks, predicted IoU and low-resolution logits, best predicted IoU first."""
    negative = prompt.negative or (False,) * len(prompt.points)
    masks, iou, logits = predictor.predict(
        point_coords=np.array(prompt.points) if prompt.points else None,
        point_labels=np.array([int(not flag) for flag in negative]) if prompt.points else None,
        box=np.array(prompt.box) if prompt.box else None,
        mask_input=None if prompt.mask_input_hw is None else prompt.mask_input_hw[None],
        multimask_output=multimask,
    )
    order = np.argsort(-iou, kind="stable")
    return masks[order], iou[order], logits[order]


def assert_same_answer(ours: MaskSet, official: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Check that the answers are equal within the tolerances, and not degenerate."""
    masks, iou, logits = official
    assert logits.std() > 2, "degenerate logits prove nothing"
    np.testing.assert_allclose(ours.logits_Mhw, logits, atol=LOGITS_TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours.predicted_iou_M, iou, atol=LOGITS_TOLERANCE, rtol=0)
    assert ours.masks_MHW.shape == masks.shape
    for mask, expected in zip(ours.masks_MHW, masks, strict=True):
        union = np.count_nonzero(mask | expected)
        assert union == 0 or np.count_nonzero(mask & expected) / union >= MASK_IOU
