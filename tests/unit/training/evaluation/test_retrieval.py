import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.config import EDGE
from samclip_core.io.masks import encode_rle
from samclip_core.regions import Regions
from tests.oracle import Oracle
from tests.photographs import draw, jpg, write_shard
from tests.vectors import GEOMETRY, D, regions
from training.evaluation import retrieval
from training.evaluation.suite import Options


def test_of_the_photographs_with_a_thing_those_among_the_first_are_counted():
    score_NB = np.array([[0.9, 0.1, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4]])
    named_NB = np.array([[True, True, True, False], [True, False, False, False]])
    np.testing.assert_allclose(retrieval.found_first(score_NB, named_NB, 2), [1, 0])
    np.testing.assert_allclose(retrieval.found_first(score_NB, named_NB, 3), [2 / 3, 0])


class Seeing:
    """A model whose regions and pictures have the vectors that it is told."""

    config = EDGE

    def __init__(self, whole: dict[bytes, np.ndarray], regions: dict[bytes, Regions]) -> None:
        self._whole, self._regions = whole, regions

    def embed_text(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.eye(D)[int("cat" not in text)] for text in texts])

    def embed_image(self, encoded: bytes) -> np.ndarray:
        return self._whole[encoded]

    def regions(self, encoded: bytes) -> SimpleNamespace:
        return SimpleNamespace(regions=self._regions[encoded], geometry=GEOMETRY)


def test_a_photograph_is_found_by_its_best_object(tmp_path: Path):
    """Eleven photographs have dogs; the objects show the one cat, the whole pictures do not."""
    samples, whole, shown = {}, {}, {}
    for place in range(12):
        encoded = jpg(draw(place).image_HW3)
        category = "cat" if place == 11 else "dog"
        rle = {"size": [48, 64], "counts": encode_rle(np.ones((48, 64), bool)).decode()}
        info = {"instances": [{"category": category, "segmentation": rle, "iscrowd": 0}]}
        samples[str(place)] = {"jpg": encoded, "json": json.dumps(info).encode()}
        whole[encoded] = np.eye(D)[1]
        clip_RD = np.eye(D)[[2, category == "dog"]].astype(np.float16)
        shown[encoded] = replace(regions(place, 2), clip_RD=clip_RD)
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    metrics = retrieval.by_names(Seeing(whole, shown), Options(root=tmp_path))
    expected = {"by_whole_r10": 0.5, "by_objects_r10": 1, "by_objects_more": 0.5, "names": 2}
    assert {key: metrics[key] for key in expected} == expected


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
