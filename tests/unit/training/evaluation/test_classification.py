import json
from pathlib import Path

import numpy as np
import pytest

from samclip_core.config import EDGE
from tests import photographs
from tests.oracle import Oracle
from tests.photographs import draw, jpg, write_shard
from training.evaluation import classification
from training.evaluation.suite import Options


def test_top_1_counts_the_photographs_whose_class_is_named(tmp_path: Path):
    names = {3: "cat", 5: "dog", 9: "fish"}
    oracle, samples = Oracle(), {}
    for place, (truth, answer) in enumerate([(3, 3), (9, 9), (5, 5), (5, 9)]):
        encoded = jpg(draw(place).image_HW3)
        samples[str(place)] = {"jpg": encoded, "json": b"{}", "cls": str(truth).encode()}
        oracle.images[encoded] = np.eye(3)[list(names).index(answer)]
    for row, name in zip(np.eye(3), names.values(), strict=True):
        oracle.texts[EDGE.templates[0].format(name)] = row
    for source in classification.OWN_SETS:
        write_shard(tmp_path / source / "val-0.tar", samples)
        photographs.write_classes(tmp_path / source, names)
    metrics = classification.own_sets(oracle, Options(root=tmp_path))
    assert metrics == {f"{source}_top1": 0.75 for source in classification.OWN_SETS}


def test_folders_give_the_first_and_the_first_five(tmp_path: Path):
    """Of seven classes, the right one ranks 1st, 2nd, 5th and 6th."""
    names = {f"n0000000{i}": f"thing {i}" for i in range(7)}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    oracle = Oracle()
    for row, name in zip(np.eye(7), names.values(), strict=True):
        oracle.texts[EDGE.templates[0].format(name)] = row
    for seed, (truth, rank) in enumerate([(0, 0), (3, 1), (2, 4), (6, 5)]):
        encoded = jpg(draw(seed).image_HW3)
        order = [i for i in range(7) if i != truth]
        order.insert(rank, truth)
        image_D = np.zeros(7)
        image_D[order] = np.linspace(1, 0, 7)
        oracle.images[encoded] = image_D
        folder = tmp_path / f"val/n0000000{truth}"
        folder.mkdir(parents=True)
        (folder / "one.JPEG").write_bytes(encoded)
    for name in names:
        (tmp_path / "val" / name).mkdir(exist_ok=True)
    assert classification.folders(oracle, Options(root=tmp_path)) == {"top1": 0.25, "top5": 0.75}


def test_the_folders_may_be_the_root_itself(tmp_path: Path):
    (tmp_path / "red fish").mkdir()
    encoded = jpg(draw(0).image_HW3)
    (tmp_path / "red fish/1.jpg").write_bytes(encoded)
    oracle = Oracle()
    oracle.images[encoded] = np.ones(1)
    oracle.texts["a photo of a red fish."] = np.ones(1)
    assert classification.folders(oracle, Options(root=tmp_path))["top1"] == pytest.approx(1)
