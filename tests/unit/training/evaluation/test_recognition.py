"""Photographs are classified by name, and found by captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import center_crop

from samclip_core.config import EDGE
from tests import photographs
from tests.oracle import Oracle
from tests.photographs import draw, jpg, png, write_shard
from training.evaluation import recognition
from training.evaluation.layouts import class_folders
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
    for source in recognition.CLASSIFIED:
        write_shard(tmp_path / source / "val-0.tar", samples)
        photographs.write_classes(tmp_path / source, names)
    metrics = recognition.classify_own_sets(oracle, Options(root=tmp_path))
    assert metrics == {f"{source}_top1": 0.75 for source in recognition.CLASSIFIED}


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
        oracle.images[recognition.centre_square(encoded).tobytes()] = np.eye(7)[truth]
        folder = tmp_path / f"val/n0000000{truth}"
        folder.mkdir(parents=True)
        (folder / "one.JPEG").write_bytes(encoded)
    for name in names:
        (tmp_path / "val" / name).mkdir(exist_ok=True)
    data = class_folders("val", tmp_path)
    assert recognition.names(data, oracle, Options(root=tmp_path)) == {
        "top1": 0.25,
        "top5": 0.75,
        "paper_top1": 1.0,
        "paper_top5": 1.0,
    }


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (9, 9)])
def test_the_papers_protocol_sees_the_central_square(height: int, width: int):
    """As torchvision's CenterCrop of the shorter side."""
    image_HW3 = draw(1, height, width).image_HW3
    side = min(height, width)
    expected_3LL = center_crop(torch.from_numpy(image_HW3).permute(2, 0, 1), [side, side])
    found_LL3 = recognition.centre_square(png(image_HW3))
    assert np.abs(found_LL3.transpose(2, 0, 1).astype(int) - expected_3LL.numpy()).max() == 0


def test_our_own_captions_find_their_photograph_and_are_found(tmp_path: Path):
    """Among twelve photographs, the captions rank theirs 1st, 1st, 3rd and 8th."""
    oracle, samples = Oracle(), {}
    captions = {0: ["first", "again"], 1: ["third"], 2: ["eighth"]}
    for place in range(13):
        encoded = jpg(draw(place).image_HW3)
        texts = captions.get(place, [f"other {place}"]) if place < 12 else []
        info = json.dumps({"captions": texts}).encode()
        samples[str(place)] = {"jpg": encoded, "json": info}
        oracle.images[encoded] = np.eye(13)[place]
        # The last photograph has no caption and is not a candidate, however similar.
        oracle.texts |= {text: np.eye(13)[place] + np.eye(13)[12] for text in texts}
    oracle.texts["third"][[5, 6]] = 2
    oracle.texts["eighth"][3:10] = 2
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    metrics = recognition.caption_own_set(oracle, Options(root=tmp_path))
    # Photographs 3 to 9 rank "eighth" before their own caption, 5 and 6 also "third".
    expected = {
        "text_to_image_r1": 11 / 13,
        "text_to_image_r5": 12 / 13,
        "text_to_image_r10": 1,
        "image_to_text_r1": 5 / 12,
        "image_to_text_r5": 1,
        "image_to_text_r10": 1,
    }
    assert metrics == {f"coco_multi_{key}": pytest.approx(v) for key, v in expected.items()}
