"""A linear head learns from a frozen encoder what its features tell, alike for every seed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samclip_core.model import SamClip
from tests.converted import make_pair
from tests.official import small_sam, write
from tests.photographs import draw, jpg, outlined, write_classes, write_shard
from training.evaluation import probing
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import mean_iou
from training.evaluation.probe_training import (
    Cuts,
    Fit,
    FrozenEncoder,
    Scale,
    draw_window,
    fit_head,
)
from training.evaluation.probing import probe
from training.evaluation.suite import Options

CPU = torch.device("cpu")
SHORT = Fit(epochs=25, batch=3, draw=draw_window, rate=3e-2)


def colours(pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
    """Encode mean colours, with a different scale per channel and outliers in the padding."""
    map_B3hw = F.avg_pool2d(pixels_B3SS, 4)
    for map_3hw, (height, width) in zip(map_B3hw, sizes_B2.tolist(), strict=True):
        map_3hw[:, -(-height // 4) :], map_3hw[:, :, -(-width // 4) :] = 999, 999
    return map_B3hw * torch.tensor([1e-3, 1, 50])[:, None, None]


FROZEN = FrozenEncoder(64, CPU, colours)


def drawn(seeds: range) -> LabelledSet:
    pictures = [
        Mapped(partial(jpg, d.image_HW3), partial(np.copy, d.labels_HW)) for d in map(draw, seeds)
    ]
    return LabelledSet("drawn", {1: "red", 2: "green", 3: "blue"}, pictures)


SPLIT = TRAIN, VAL = drawn(range(6)), drawn(range(20, 23))


def test_a_head_learns_what_the_features_tell():
    pixels_3C = sum(probe(FROZEN, SPLIT, SHORT))
    labels_N = np.concatenate([picture.labels().ravel() for picture in VAL.pictures])
    assert pixels_3C[1].tolist() == [(labels_N == value).sum() for value in (1, 2, 3)]
    assert mean_iou(pixels_3C) > 0.9


@pytest.mark.parametrize("head", ["deeplab", "psp"])
def test_the_papers_other_heads_learn_it_too(head: str):
    pixels_3C = sum(probe(FROZEN, SPLIT, replace(SHORT, epochs=20, head=head, rate=1e-3)))
    assert mean_iou(pixels_3C) > 0.7


def test_a_background_is_learnt_as_a_class():
    split = tuple(replace(part, background=0) for part in SPLIT)
    pixels_3C = sum(probe(FROZEN, split, SHORT))
    assert pixels_3C.shape == (3, 4)
    assert pixels_3C[1].sum() == 3 * 120 * 160
    assert mean_iou(pixels_3C) > 0.7  # with cells of ten pixels, edges are coarse


def test_the_seed_decides():
    first, again, other = (
        sum(probe(FROZEN, SPLIT, replace(SHORT, epochs=1, batch=2, seed=seed)))
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_labels_lie_where_the_colours_do():
    """In every window, a labelled cell has the colour of its class, also flipped and padded."""
    cuts = Cuts(TRAIN.pictures, [1, 2, 3], 64, draw_window, seed=0)
    flipped, padded = set(), set()
    for cuts.epoch in range(24):
        for pixels_3SS, (height, width), labels_tt in map(cuts.__getitem__, [0]):
            assert not pixels_3SS[:, height:].any()
            assert (labels_tt[-(-height // 4) :] == -1).all()
            assert (labels_tt[:, -(-width // 4) :] == -1).all()
            cells_3tt = F.avg_pool2d(torch.from_numpy(pixels_3SS).float(), 4).numpy()
            inside_tt = labels_tt >= 0
            right = cells_3tt.argmax(axis=0)[inside_tt] == labels_tt[inside_tt]
            assert right.mean() > 0.85  # cells at an edge are mixed
            padded.add(bool(height < 64))
            columns = [np.nonzero(labels_tt == label)[1] for label in (0, 1)]
            if all(map(len, columns)):
                flipped.add(columns[0].mean() < columns[1].mean())
    assert padded == flipped == {True, False}


def test_pooling_leaves_the_padding_out():
    image_HW3 = np.full((32, 64, 3), (10, 20, 30), np.uint8)
    _, map_1D11, valid_1111 = replace(FROZEN, pooled=True).whole(jpg(image_HW3))
    assert (map_1D11.shape, valid_1111.shape) == ((1, 3, 1, 1), (1, 1, 1, 1))
    assert map_1D11[0, 1].item() == pytest.approx(20, abs=2)
    assert valid_1111.all()


def test_channels_are_brought_to_one_scale_over_the_picture_alone():
    scale = Scale.measured(FROZEN, TRAIN.pictures)
    normal, cells = [], []
    for picture in TRAIN.pictures:
        _, map_1Dhw, valid_11hw = FROZEN.whole(picture.read())
        normal.append(scale.apply(map_1Dhw, valid_11hw)[0])
        cells.append(normal[-1][:, valid_11hw[0, 0]])
    cells_Dn = torch.cat(cells, dim=1)
    assert cells_Dn.mean(dim=1) == pytest.approx([0, 0, 0], abs=0.01)
    assert cells_Dn.std(dim=1) == pytest.approx([1, 1, 1], abs=0.01)
    assert not torch.stack(normal)[:, :, 12:].any()  # 120 of 160 rows are 12 of 16 cells


@pytest.mark.parametrize(
    ("features", "shape"),
    [("tokens", (432, 8, 8)), ("sam", (32, 16, 16)), ("clip", (32, 8, 8))],
)
def test_a_checkpoints_features(tiny_checkpoint: Path, features, shape):
    model = SamClip.load(tiny_checkpoint, engine="torch")
    encoded = jpg(draw(0).image_HW3)
    frozen = probing.frozen_encoder(model, Options(root=Path(), features=features))
    geometry, map_1Dhw, _ = frozen.whole(encoded)
    assert (geometry.height, geometry.width) == (120, 160)
    assert map_1Dhw.shape == (1, *shape)
    if features == "sam":
        assert np.allclose(map_1Dhw[0].numpy(), model.encode(encoded).sam_Dhw, atol=1e-5)


def test_the_row_of_clip_reads_its_map_and_for_names_its_vector(tmp_path: Path):
    """Of a pair, both are the original's; its tokens are pixels, which are no features."""
    sam = write(small_sam(128, 32), tmp_path, "sam.pth")
    pair = make_pair(sam, tmp_path / "pair")
    model, encoded = SamClip.load(pair, engine="torch"), jpg(draw(0).image_HW3)
    seen, options = model.encode(encoded), Options(root=Path(), features="clip")
    _, map_1Dhw, _ = probing.frozen_encoder(model, options).whole(encoded)
    _, vector_1D11, valid_1111 = probing.frozen_encoder(model, options, pooled=True).whole(encoded)
    np.testing.assert_allclose(map_1Dhw[0], seen.clip_dense_Dhw, atol=2e-3)
    np.testing.assert_allclose(vector_1D11[0, :, 0, 0], seen.clip_pooled_D, atol=2e-3)
    assert valid_1111.shape == (1, 1, 1, 1)
    assert valid_1111.all()
    with pytest.raises(ValueError, match="no map of tokens: use --features sam or clip"):
        probing.frozen_encoder(model, Options(root=Path()))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PIXELS", replace(probing.PIXELS, epochs=1, batch=2))
    monkeypatch.setattr(probing, "PICTURES", replace(probing.PICTURES, batch=3, rate=3e-2))
    monkeypatch.setattr(
        probing, "frozen_encoder", lambda *given, pooled=False: replace(FROZEN, pooled=pooled)
    )


def test_our_own_sets_are_probed_from_their_training_part(tmp_path: Path, short: None):
    for source in ("coco_multi", "labelmefacade", "camvid"):
        write_classes(tmp_path / source, {1: "red", 2: "green", 3: "blue"})
        for part, seeds in {"train": range(3), "val": range(5, 7)}.items():
            samples = {str(s): outlined(draw(s), label_kind="panoptic") for s in seeds}
            write_shard(tmp_path / source / f"{part}-0.tar", samples)
    assert not probing.is_public(tmp_path)
    options = Options(root=tmp_path, features="sam", epochs=2)
    metrics = probing.segmentation(None, options)
    assert [name for name in metrics if name.endswith("_miou")] == [
        f"{source}_probe_linear_sam_miou" for source in ("coco_multi", "labelmefacade", "camvid")
    ]


@pytest.mark.parametrize("layout", ["own", "folders"])
def test_pictures_of_one_colour_are_classified(tmp_path: Path, short: None, layout: str):
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
    metrics = probing.classification(None, Options(root=tmp_path, epochs=8))
    sets = ("caltech101", "imagen200") if layout == "own" else ("folders",)
    assert metrics == {f"{name}_probe_classify_tokens_top1": 1.0 for name in sets}


def test_nothing_to_learn_from_is_said():
    with pytest.raises(ValueError, match="no pictures"):
        fit_head(FROZEN, [], [1, 2, 3], SHORT)
