"""Retention is the share of each teacher's figures that the merge keeps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from tests.coco_set import write_coco
from tests.fakes import ConstantTeacher
from tests.photographs import annotated, draw, things, write_shard
from tests.tiny import make_tiny_checkpoint
from training.claims import retention, wise_ft
from training.claims.retention import TeacherPair, kept


def test_masks_are_the_sam_teachers_and_names_the_clip_teachers(tiny_checkpoint: Path) -> None:
    merge = SamClip.load(tiny_checkpoint)
    sam = wise_ft.load_sam(tiny_checkpoint, tiny_checkpoint)
    clip = ConstantTeacher(merge.config.text_dim)
    net = TeacherPair(sam, clip).eval()
    pair = SamClip(tiny_checkpoint, TorchEngine(net, None))
    image_HW3 = draw(0).image_HW3
    features, expected = pair.encode(image_HW3), merge.encode(image_HW3)
    np.testing.assert_allclose(features.sam_Dhw, expected.sam_Dhw, atol=1e-5)
    np.testing.assert_array_equal(features.clip_pooled_D, clip.pooled_D.numpy())
    assert not np.array_equal(features.clip_pooled_D, expected.clip_pooled_D)


def test_the_table_says_what_is_kept() -> None:
    counts = {"photographs": 12}
    text = kept({"box_miou": 0.5, "top1": 0.0} | counts, {"box_miou": 0.49, "top1": 0.1} | counts)
    assert "photographs" not in text
    assert "| box miou | 50.0% | 49.0% | 98.0% |" in text
    assert "| top1 | 0.0% | 10.0% |  |" in text


def test_the_command_measures_both(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The merged model is its own SAM teacher here, so it retains its masks completely."""
    drawing = draw(0)
    write_shard(tmp_path / "coco_multi/val-0.tar", {"thing": things(drawing)})
    write_shard(tmp_path / "bsds500/val-0.tar", {"region": annotated(drawing)})
    monkeypatch.setattr(retention, "imagenet_names", lambda data: ["a", "b"])
    monkeypatch.setattr(
        retention, "ClipTeacher", lambda names_TD, version: ConstantTeacher(names_TD.shape[1])
    )
    given = [
        *("--sam", str(tiny_checkpoint), "--merge", str(tiny_checkpoint)),
        *("--root", str(tmp_path), "--suites", "masks"),
        *("--threads", str(torch.get_num_threads())),
    ]
    retention.main(given)
    shown = capsys.readouterr().out
    assert shown.startswith("part report\n")
    (row,) = [line for line in shown.splitlines() if line.startswith("| coco multi box miou ")]
    taught, merged = row.split(" | ")[1:3]
    assert float(taught[:-1]) == pytest.approx(float(merged[:-1]), abs=0.1)
    own = make_tiny_checkpoint(tmp_path / "own")
    lineage = {"metrics": {"coco_multi_box_miou": 0.25}}  # as that of edge, which names no part
    (own / checkpoint.LINEAGE).write_text(json.dumps(lineage))
    checkpoint.seal(own)
    retention.main([*given, "--merge", str(own), "--card"])
    carded = capsys.readouterr().out
    assert carded.startswith("part all\n")  # a card's figures are of its part
    assert f"| coco multi box miou | {taught} | 25.0% |" in carded


def test_a_pair_are_the_teachers_of_any_recipe(tiny_checkpoint: Path, tmp_path: Path, capsys):
    """The merge is its own pair here, and keeps everything."""
    write_coco(tmp_path, [draw(0)])
    merge = str(tiny_checkpoint)
    axes = ["--axes", *(f"coco-captions/text_to_image_r{k}={tmp_path}" for k in (1, 5))]
    assert retention.main(["--pair", merge, "--merge", merge, *axes]) == 0
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if " image r" in line
    ]
    assert [row[0] for row in rows] == [
        "| coco-captions text to image r1",
        "| coco-captions text to image r5",
    ]
    assert all(row[1] == row[2] for row in rows)
    assert all(row[3] == "100.0% |" for row in rows)
