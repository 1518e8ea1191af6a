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
