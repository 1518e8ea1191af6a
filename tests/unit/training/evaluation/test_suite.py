"""Suites measure the photographs that they are asked for, in batches that change no figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from samclip_core.model import SamClip
from samclip_core.types import Prompt
from tests.coco_set import write_coco
from tests.photographs import draw, jpg, write_shard
from training.data.sample import BadSample
from training.evaluation import instances, suite
from training.evaluation.suite import Options, limited, own_samples, part_of
from training.suites import measure_public

SHAPES = [(120, 160), (160, 120), (90, 90), (64, 200), (120, 160)]
PICTURES = [jpg(draw(seed, *shape).image_HW3) for seed, shape in enumerate(SHAPES)]


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
    alone = [mask for pair in asked for mask in tiny_model.segment(*pair, multimask=False)]
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
        return [10 * number for number in batch]


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model = Cramped(room=3)
    assert suite.encode(range(8), model) == [10 * number for number in range(8)]
    assert model.sizes == [2, 2, 2, 2]
    with pytest.raises(MemoryError, match="device is full"):
        suite.encode(range(2), Cramped(room=0))


def test_a_gpu_has_batches_and_the_last_one_is_shorter(
    tiny_model: SamClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path, [draw(seed) for seed in range(5)])
    options = Options(root=tmp_path)
    alone = measure_public("coco-boxes", tiny_model, options)
    sizes, encode_batch = list[int](), SamClip.encode_batch
    monkeypatch.setattr(tiny_model.engine, "device", "cuda")
    monkeypatch.setattr(suite, "AT_ONCE", 2)
    monkeypatch.setattr(
        SamClip, "encode_batch", lambda *given: sizes.append(len(given[1])) or encode_batch(*given)
    )
    assert measure_public("coco-boxes", tiny_model, options) == pytest.approx(alone, abs=1e-6)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, "abcdefg"), (9, "abcdefg"), (3, "ace"), (1, "a"), (0, "")]
)
def test_a_limit_spreads_over_the_whole(limit: int | None, kept: str):
    assert limited("abcdefg", limit) == list(kept)


def test_what_cannot_be_used_takes_no_place(tmp_path: Path):
    encoded = jpg(draw(0).image_HW3)
    samples = {str(i): {"jpg": encoded, "json": b'{"odd": %d}' % (i % 2)} for i in range(6)}
    write_shard(tmp_path / "camvid/val-0.tar", samples)
    options = Options(root=tmp_path, limit=2)
    kept = own_samples(options, "camvid", usable=lambda sample: sample.info["odd"])
    assert [sample.key for sample in kept] == ["1", "3"]


def test_a_torn_photograph_is_named_before_any_is_measured(tmp_path: Path):
    write_shard(tmp_path / "camvid/val-0.tar", {"a": {"jpg": PICTURES[0][:-30]}})
    with pytest.raises(BadSample, match=r"camvid/a: .* the JPEG file is damaged or truncated"):
        own_samples(Options(root=tmp_path), "camvid")


def keys_of(root: Path, **options: str) -> list[str]:
    return [sample.key for sample in own_samples(Options(root=root, **options), "camvid")]


def test_a_third_of_the_validation_photographs_is_for_choosing(tmp_path: Path):
    """The parts are disjoint and complete, and do not depend on the other photographs."""
    sample = {"jpg": jpg(draw(0).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "a/camvid/val-0.tar", {f"photo_{i}": sample for i in range(60)})
    write_shard(tmp_path / "b/camvid/val-0.tar", {f"photo_{i}": sample for i in range(30, 90)})
    select, report = (keys_of(tmp_path / "a", part=part) for part in ("select", "report"))
    assert sorted(select + report) == sorted(keys_of(tmp_path / "a", part="all"))
    assert 10 < len(select) < 30
    common = set(select) & set(keys_of(tmp_path / "b"))
    assert common == set(keys_of(tmp_path / "b", part="select")) & set(keys_of(tmp_path / "a"))


def test_a_part_belongs_to_a_key_for_ever():
    chosen = [key for key in "0123456789" if part_of(key) == "select"]
    assert chosen == ["2", "5", "6", "7"]


def test_the_training_split_has_no_parts_and_an_empty_part_is_an_error(tmp_path: Path):
    write_shard(tmp_path / "camvid/val-0.tar", {"0": {"jpg": PICTURES[0]}})
    write_shard(tmp_path / "camvid/train-0.tar", {str(i): {"jpg": PICTURES[0]} for i in range(6)})
    assert len(own_samples(Options(root=tmp_path, part="select"), "camvid", "train")) == 6
    assert keys_of(tmp_path, part="report") == ["0"]
    with pytest.raises(ValueError, match="no usable val photographs in part select"):
        keys_of(tmp_path, part="select")
