import json
from pathlib import Path

import numpy as np
import pytest

from tests.oracle import Oracle
from tests.photographs import draw, jpg, write_shard
from training.evaluation import retrieval
from training.evaluation.suite import Options


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
    metrics = retrieval.own_sets(oracle, Options(root=tmp_path))
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


def test_public_captions_are_measured_alike(tmp_path: Path):
    (tmp_path / "images").mkdir()
    oracle, images = Oracle(), []
    for place in range(3):
        encoded = jpg(draw(place).image_HW3)
        (tmp_path / f"images/{place}.jpg").write_bytes(encoded)
        texts = [f"{place} seen", f"{place} told"]
        oracle.images[encoded] = np.eye(3)[place]
        oracle.texts |= {text: np.eye(3)[place] for text in texts}
        sentences = [{"raw": text} for text in texts]
        images.append({"filename": f"{place}.jpg", "split": "test", "sentences": sentences})
    oracle.texts["2 told"] = np.eye(3)[0]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    metrics = retrieval.public(oracle, Options(root=tmp_path))
    assert metrics["text_to_image_r1"] == pytest.approx(5 / 6)
    assert metrics["image_to_text_r1"] == pytest.approx(2 / 3)  # "2 told" ties with image 0's own
    assert metrics["image_to_text_r5"] == 1
