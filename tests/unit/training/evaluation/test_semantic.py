import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samclip_core.config import TaskSizes
from samclip_core.geometry import Geometry
from samclip_core.io.image import decode
from samclip_core.model import SamClip
from tests import photographs
from tests.oracle import ColourBlind, Oracle
from tests.photographs import Drawing, draw, jpg, png, write_shard
from tests.tiny import TINY
from training.evaluation import semantic
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import mean_iou
from training.evaluation.suite import Options, Protocol

NAMES = {1: "car", 2: "sky-other-merged", 3: "wall-brick"}


def labelled(drawings: list[Drawing], background: int | None = None) -> LabelledSet:
    pictures = [
        Mapped(partial(jpg, drawing.image_HW3), partial(np.copy, drawing.labels_HW))
        for drawing in drawings
    ]
    return LabelledSet("drawn", NAMES, pictures, background)


def test_our_own_maps_are_compared_where_there_is_a_class(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    partly = draw(5)  # not fully labelled, so not evaluated
    for source, kind in {"coco_multi": "panoptic", "labelmefacade": "", "camvid": ""}.items():
        info = json.dumps({"label_kind": kind}).encode()
        samples = {
            str(i): {"jpg": jpg(d.image_HW3), "json": info, "png": png(d.labels_HW)}
            for i, d in enumerate(drawings)
        }
        if source == "coco_multi":
            samples["partly"] = {
                "jpg": jpg(partly.image_HW3),
                "json": b'{"label_kind": "things_only"}',
            }
        write_shard(tmp_path / source / "val-0.tar", samples)
        photographs.write_classes(tmp_path / source, {0: "void"} | NAMES, ignored=(0,))

    options = Options(root=tmp_path, protocol="served")
    metrics = semantic.own_sets(Oracle(drawings), options)

    labels_N = np.concatenate([drawing.labels_HW.ravel() for drawing in drawings])
    always_first = (labels_N == 1).sum() / (labels_N > 0).sum() / 3
    for source in ("coco_multi", "labelmefacade", "camvid"):
        assert metrics[f"{source}_semantic_miou"] == 1
        assert metrics[f"{source}_semantic_two_heads_miou"] == pytest.approx(always_first)
        numbers = ("classes", "classes_union", "photographs")
        assert [metrics[f"{source}_semantic_{number}"] for number in numbers] == [3, 3, 2]


def public(data: LabelledSet, model: object, options: Options) -> dict[str, float]:
    """Return the mean IoU of each way in which a public set is measured."""
    metrics = semantic.public(data, model, options)
    return {name: value for name, value in metrics.items() if name.endswith("_miou")}


def test_a_background_is_a_class_or_is_not_counted(tmp_path: Path):
    drawings = [draw(seed) for seed in range(3)]
    data = labelled(drawings, background=0)
    metrics = public(data, Oracle(drawings), Options(root=tmp_path, protocol="served"))
    assert metrics == {"drawn_3_miou": 1, "drawn_4_clear_win_miou": 1}
    oracle = Oracle(drawings)
    options = Options(root=tmp_path, protocol="served", refine=True)
    labels_N = drawings[0].labels_HW.ravel()
    assert public(labelled(drawings[:1], background=0), oracle, options) == {
        "drawn_3_miou": 1,
        "drawn_4_clear_win_miou": 1,
        "drawn_3_two_heads_miou": pytest.approx((labels_N == 1).sum() / (labels_N > 0).sum() / 3),
        "drawn_4_clear_win_two_heads_miou": pytest.approx((labels_N == 1).mean() / 4),
    }


class Attentive(Oracle):
    """A model that keeps the sharpness of the attention with which each map was made."""

    config = TINY["edge"]

    def __init__(self, drawings: list[Drawing]) -> None:
        super().__init__(drawings)
        for drawing in drawings:  # the paper's frames are squashed
            image = Image.fromarray(decode(jpg(drawing.image_HW3), self.limits))
            squashed = image.resize((128, 128), Image.Resampling.BILINEAR)
            self.drawings[np.asarray(squashed).tobytes()] = drawing
        self.used: list[float | None] = []

    def segment_text(self, *given):
        self.used.append(self.config.fitted.attention)
        assert self.config.fitted.presence == TINY["edge"].fitted.presence
        return super().segment_text(*given)


def test_the_papers_protocol_has_no_attention_and_a_set_is_measured_by_both(tmp_path: Path):
    model, data = Attentive([draw(0)]), labelled([draw(0)])
    assert public(data, model, Options(root=tmp_path)) == {"drawn_miou": 1, "drawn_paper_miou": 1}
    assert model.used == [60.0, None]
    assert model.config == TINY["edge"]
    options = Options(root=tmp_path, protocol="paper")
    assert public(data, model, options) == {"drawn_paper_miou": 1}
    assert model.used[2:] == [None]


class Wordy(Oracle):
    """A model that gives the drawn classes their prompts, and the rest of a picture by halves to
    "background" and to the last of the words that mean background."""

    def segment_text(self, seen, labels: list[str], background: bool, refine: bool):
        if labels[0] != "background":
            return super().segment_text(seen, labels, background, refine)
        assert not background
        labels_HW = seen.drawing.labels_HW.astype(int)
        assert [labels[value] for value in (1, 2, 3)] == ["car", "sky", "brick wall"]
        labels_HW[60:][labels_HW[60:] == 0] = len(labels) - 1
        return SimpleNamespace(label_map_HW=labels_HW)


def test_clippys_words_are_background(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    prompts = ("background", "car", "sky", "brick wall", "grass", "wood")
    data = replace(labelled(drawings, background=0), prompts=prompts)
    metrics = public(data, Wordy(drawings), Options(root=tmp_path, protocol="served"))
    assert metrics == {"drawn_3_miou": 1, "drawn_4_clippy_miou": 1, "drawn_4_clear_win_miou": 1}


def tiled(height: int, width: int, tile: int) -> Drawing:
    """Return a drawing of tiles in the three colours, without gaps."""
    y, x = np.ogrid[:height, :width]
    labels_HW = (1 + (y // tile + x // tile) % 3).astype(np.uint8)
    palette = np.array([(0, 0, 0), *photographs.COLOURS.values()], np.uint8)
    return Drawing(palette[labels_HW], labels_HW)


def measured(model: ColourBlind, data: LabelledSet, protocol: Protocol) -> float:
    return mean_iou(np.sum(semantic.measure(model, data, protocol), axis=0))


@pytest.mark.parametrize("protocol", ["served", "paper"])
@pytest.mark.parametrize("shape", [(120, 160), (160, 120), (131, 131)])
def test_each_protocol_finds_the_colours_where_they_are(protocol, shape):
    """A shift by one cell, four or five pixels, would reduce the measure below 0.5."""
    data = labelled([tiled(*shape, tile=23)])
    assert measured(ColourBlind(128), data, protocol) > 0.85


@pytest.mark.parametrize(("prompts", "size"), [(None, 64), ("own", 128)])
def test_only_the_clip_head_is_measured_at_the_side_of_its_task(monkeypatch, prompts, size):
    model, sizes = ColourBlind(128), []
    task_sizes = TaskSizes(classify=32, semantic=64, retrieval=32)
    model.config = replace(model.config, task_sizes=task_sizes)
    prepare = ColourBlind.prepare
    monkeypatch.setattr(
        ColourBlind, "prepare", lambda *given: sizes.append(given[-1]) or prepare(*given)
    )
    semantic.measure(model, labelled([tiled(120, 160, tile=40)]), "paper", prompts)
    assert sizes == [size]


def test_the_papers_points_are_drawn_where_a_class_is_probable():
    """A hundred classes win the same two columns; one of these is three times as probable."""
    map_ss = np.zeros((32, 32), np.float32)
    map_ss[:, 3], map_ss[:, 8] = 0.3, 0.9
    features = SimpleNamespace(geometry=Geometry(100, 100, 128))
    maps_Css = np.stack([map_ss] * 100)
    pieces = semantic.DrawnPoints(["a"]).pieces(features, maps_Css, maps_Css > 0)
    assert [piece.index for piece in pieces] == [*range(100)]
    assert {len(piece.prompt.points) for piece in pieces} == {1, 2, 3}
    columns = [int(x // 4) for piece in pieces for x, _ in piece.prompt.points]
    assert set(columns) == {3, 8}
    assert columns.count(8) / len(columns) == pytest.approx(0.75, abs=0.1)
    assert all(piece.prompt.box is None for piece in pieces)
    assert pieces[0].prompt.mask_input_hw.shape == (32, 32)


def test_the_papers_prompts_are_measured_beside_ours(tmp_path: Path, tiny_model: SamClip):
    options = Options(root=tmp_path, protocol="served", refine=True, prompts="paper")
    drawings = [draw(seed) for seed in range(2)]
    figures = semantic.public(labelled(drawings), tiny_model, options)
    heads = ["", "_two_heads", "_two_heads_paper_prompts"]
    assert [name for name in figures if name.endswith("_miou")] == [f"drawn{h}_miou" for h in heads]
    less = "drawn_two_heads_paper_prompts_less_own"
    apart = figures[f"drawn{heads[2]}_miou"] - figures[f"drawn{heads[1]}_miou"]
    assert figures[f"{less}_low"] - 1e-9 <= apart <= figures[f"{less}_high"] + 1e-9
    assert figures[f"{less}_low"] < figures[f"{less}_high"]
