from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.config import EDGE
from samclip_core.geometry import Geometry
from samclip_core.io.image import ImageLimits, decode
from samclip_core.model import SamClip
from tests.photographs import draw, jpg, outlined, write_classes, write_shard
from training.evaluation import probing
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import mean_iou
from training.evaluation.probe_heads import HEADS
from training.evaluation.probing import Fit, Split, pooled, probe
from training.evaluation.suite import Options

CPU = torch.device("cpu")
SHORT = Fit(steps=150, batch=8, rate=3e-2)


def colours(encoded: bytes) -> tuple[Geometry, Tensor]:
    """Encode mean colours, with a different scale per channel and outliers in the padding."""
    image_HW3 = decode(encoded, ImageLimits())
    geometry = Geometry(*image_HW3.shape[:2], 64)
    map_3hw = F.avg_pool2d(torch.from_numpy(geometry.resize(image_HW3)).float(), 4)
    rows, columns = geometry.grid(16)
    map_3hw[:, rows:], map_3hw[:, :, columns:] = 999, 999
    return geometry, map_3hw * torch.tensor([1e-3, 1, 50])[:, None, None]


def drawn(seeds: range) -> LabelledSet:
    pictures = [
        Mapped(partial(jpg, d.image_HW3), partial(np.copy, d.labels_HW)) for d in map(draw, seeds)
    ]
    return LabelledSet("drawn", {1: "red", 2: "green", 3: "blue"}, pictures)


SPLIT = Split(drawn(range(6)), drawn(range(20, 23)))


@pytest.mark.parametrize(
    ("head", "fit"), [("linear", SHORT), ("psp", Fit(steps=40, batch=4, rate=1e-2))]
)
def test_a_head_learns_what_the_features_tell(head: str, fit: Fit):
    confusion_CC = probe(colours, SPLIT, [head], fit, CPU)[head]
    labels_N = np.concatenate([picture.labels().ravel() for picture in SPLIT.val.pictures])
    assert confusion_CC.sum(axis=1).tolist() == [(labels_N == value).sum() for value in (1, 2, 3)]
    assert mean_iou(confusion_CC) > 0.9


def test_a_background_is_learnt_as_a_class():
    split = Split(*(replace(part, background=0) for part in SPLIT))
    confusion_CC = probe(colours, split, ["linear"], SHORT, CPU)["linear"]
    assert confusion_CC.shape == (4, 4)
    assert confusion_CC.sum() == 3 * 120 * 160
    assert mean_iou(confusion_CC) > 0.7  # with cells of ten pixels, edges are coarse


def test_several_heads_share_one_pass_over_the_pictures():
    seen = []

    def encode(encoded: bytes) -> tuple[Geometry, Tensor]:
        seen.append(encoded)
        return colours(encoded)

    answers = probe(encode, SPLIT, list(HEADS), Fit(steps=1, batch=2), CPU)
    assert list(answers) == ["linear", "deeplab", "psp"]
    assert len(seen) == len(SPLIT.train.pictures) + len(SPLIT.val.pictures)


def test_the_seed_decides():
    first, again, other = (
        probe(colours, SPLIT, ["linear"], Fit(steps=3, batch=2, seed=seed), CPU)["linear"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_heads_answer_at_the_size_of_the_map():
    map_BDhw = torch.randn(2, 5, 9, 9)
    for build in HEADS.values():
        assert build(5, 7)(map_BDhw).shape == (2, 7, 9, 9)


def test_pooling_leaves_the_padding_out():
    image_HW3 = np.full((32, 64, 3), (10, 20, 30), np.uint8)
    geometry, map_D11 = pooled(colours)(jpg(image_HW3))
    assert (geometry.height, geometry.width, map_D11.shape) == (1, 1, (3, 1, 1))
    assert map_D11[1].item() == pytest.approx(20, abs=2)


def test_training_labels_lie_where_the_picture_does():
    row_HW = np.repeat(np.array([[0, 1], [2, -1]]), 20, axis=0).repeat(40, axis=1)  # 40×80
    labels_tt = probing._frame_labels(row_HW, Geometry(40, 80, 64))
    expected_tt = np.full((16, 16), -1)
    expected_tt[:4, :8], expected_tt[:4, 8:], expected_tt[4:8, :8] = 0, 1, 2
    assert np.array_equal(labels_tt, expected_tt)


def test_channels_are_brought_to_one_scale_over_the_picture_alone(tmp_path: Path):
    cache = probing._cached(colours, SPLIT.train.pictures, [1, 2, 3], tmp_path)
    scale = probing._scale(cache, CPU)
    maps_NDhw = scale.apply(torch.from_numpy(cache.maps_NDhw[:]), cache.valid_N1hw)
    cells_Dn = maps_NDhw.transpose(0, 1)[:, cache.valid_N1hw[:, 0]]
    assert cells_Dn.mean(dim=1) == pytest.approx([0, 0, 0], abs=0.01)
    assert cells_Dn.std(dim=1) == pytest.approx([1, 1, 1], abs=0.01)
    assert not maps_NDhw[:, :, 12:].any()  # 120 of 160 rows are 12 of 16 cells


@pytest.mark.parametrize(("features", "shape"), [("tokens", (432, 8, 8)), ("sam", (32, 16, 16))])
def test_a_checkpoints_encoder_before_any_head(tiny_checkpoint: Path, features, shape):
    model = SamClip.load(tiny_checkpoint)
    encoded = jpg(draw(0).image_HW3)
    options = Options(root=Path(), features=features)
    geometry, map_Dhw = probing.encoder(model, options)(encoded)
    assert (geometry.height, geometry.width) == (120, 160)
    assert map_Dhw.shape == shape
    if features == "sam":
        assert np.allclose(map_Dhw.numpy(), model.encode(encoded).sam_Dhw, atol=1e-5)


def test_a_pairs_tokens_are_no_features():
    model = SimpleNamespace(config=replace(EDGE, kind="pair"))
    with pytest.raises(ValueError, match="--features sam"):
        probing.encoder(model, Options(root=Path()))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PIXELS", Fit(steps=1, batch=2))
    monkeypatch.setattr(probing, "PICTURES", Fit(steps=100, batch=8, rate=3e-2))


def test_our_own_sets_are_probed_from_their_training_part(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probing, "encoder", lambda *_: colours)
    for source in ("coco_multi", "labelmefacade", "camvid"):
        write_classes(tmp_path / source, {1: "red", 2: "green", 3: "blue"})
        for part, seeds in {"train": range(3), "val": range(5, 7)}.items():
            samples = {str(s): outlined(draw(s), label_kind="panoptic") for s in seeds}
            write_shard(tmp_path / source / f"{part}-0.tar", samples)
    model = SimpleNamespace(engine=SimpleNamespace(device="cpu"))
    metrics = probing.segmentation(["linear"], model, Options(root=tmp_path, features="sam"))
    assert list(metrics) == [
        f"{source}_probe_linear_sam_miou" for source in ("coco_multi", "labelmefacade", "camvid")
    ]


@pytest.mark.parametrize("layout", ["own", "folders"])
def test_pictures_of_one_colour_are_classified(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch, layout: str
):
    monkeypatch.setattr(probing, "encoder", lambda *_: colours)
    shades = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        samples = {}
        for index, (name, shade) in enumerate(shades.items()):
            for copy in range(3):
                image_HW3 = random.integers(-30, 30, (32, 48, 3)) + shade
                encoded = jpg(image_HW3.astype(np.uint8))
                cls = str(index).encode()
                samples[f"{name}{copy}"] = {"jpg": encoded, "json": b"{}", "cls": cls}
                if layout == "folders":
                    (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                    (tmp_path / part / name / f"{copy}.jpg").write_bytes(encoded)
        for source in ("caltech101", "imagen200") if layout == "own" else ():
            write_shard(tmp_path / source / f"{part}-0.tar", samples)
            write_classes(tmp_path / source, dict(enumerate(shades)))
    metrics = probing.classification(
        SimpleNamespace(engine=SimpleNamespace(device="cpu")), Options(root=tmp_path)
    )
    sets = ("caltech101", "imagen200") if layout == "own" else ("folders",)
    assert metrics == {f"{name}_probe_classify_tokens_top1": 1.0 for name in sets}


def test_nothing_to_learn_from_is_said():
    with pytest.raises(ValueError, match="no pictures"):
        probe(colours, Split(drawn(range(0)), SPLIT.val), ["linear"], SHORT, CPU)
