from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from samclip_core.encoder import Prepared
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures, Prompt
from tests.coco_set import write_coco
from tests.photographs import draw, jpg
from training.evaluation import batches, instances
from training.evaluation.suite import Options

SHAPES = [(120, 160), (160, 120), (90, 90), (64, 200), (120, 160)]
PICTURES = [jpg(draw(seed, *shape).image_HW3) for seed, shape in enumerate(SHAPES)]


def framed(model: SamClip, encoded: bytes) -> Prepared:
    return model.prepare(encoded)


def features_of(
    model: SamClip, batch: Sequence[tuple[bytes, ImageFeatures]]
) -> list[ImageFeatures]:
    return [features for _, features in batch]


def test_a_batch_has_the_features_of_each_picture_alone(tiny_model: SamClip) -> None:
    together = batches.score_batch(framed, features_of, tiny_model, PICTURES)
    for encoded, found in zip(PICTURES, together, strict=True):
        alone = tiny_model.encode(encoded)
        assert found.geometry == alone.geometry
        for name in ("sam_Dhw", "clip_dense_Dhw", "clip_pooled_D"):
            one, many = getattr(alone, name), getattr(found, name)
            np.testing.assert_allclose(many, one, atol=1e-5, rtol=1e-5, err_msg=name)


def test_prompts_of_several_pictures_share_calls_of_the_decoder(
    tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five pictures with one to five boxes, four prompts per call."""
    monkeypatch.setattr(instances, "PROMPTS_PER_CALL", 4)
    seen = [tiny_model.encode(encoded) for encoded in PICTURES]
    prompts = [
        [Prompt(box=(5.0 + i, 8.0, 40.0 + 3 * i, 50.0)) for i in range(count)]
        for count in range(1, 6)
    ]
    asked = list(zip(seen, prompts, strict=True))
    together = list(instances.answers(tiny_model, asked, multimask=False))
    alone = [one for each in asked for one in tiny_model.segment(*each, multimask=False)]
    assert len(together) == 15
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many.logits_Mhw, one.logits_Mhw, atol=2e-3, rtol=1e-4)
        np.testing.assert_allclose(many.predicted_iou_M, one.predicted_iou_M, atol=1e-5)
        assert (many.masks_MHW != one.masks_MHW).mean() < 1e-3


class Cramped:
    """A model whose device has memory for three pictures."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, list[int]()

    def encode_batch(self, batch: Sequence[int]) -> list[int]:
        if len(batch) > self.room:
            raise MemoryError("the device is full")
        self.sizes.append(len(batch))
        return [10 * each for each in batch]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model = Cramped(room=3)
    assert batches.encode(range(8), model) == [10 * each for each in range(8)]
    assert model.sizes == [2, 2, 2, 2]
    with pytest.raises(MemoryError, match="device is full"):
        batches.encode(range(2), Cramped(room=0))


def test_a_gpu_has_batches_and_the_last_one_is_shorter(
    tiny_model: SamClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path, [draw(seed) for seed in range(5)])
    options = Options(root=tmp_path)
    alone = instances.coco_boxes(tiny_model, options)
    sizes, encode_batch = list[int](), SamClip.encode_batch
    monkeypatch.setattr(tiny_model.engine, "device", "cuda")
    monkeypatch.setattr(batches, "AT_ONCE", 2)
    monkeypatch.setattr(
        SamClip, "encode_batch", lambda *given: sizes.append(len(given[1])) or encode_batch(*given)
    )
    assert instances.coco_boxes(tiny_model, options) == pytest.approx(alone, abs=1e-6)
    assert sizes == [2, 2, 1]
