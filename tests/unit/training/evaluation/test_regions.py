import json
from pathlib import Path

import numpy as np
import pytest

from samclip_core.config import EDGE
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.fakes import features_of
from tests.photographs import draw, instance, jpg, write_shard
from training.evaluation import regions
from training.evaluation.suite import Options

NAMES = {1: "cat", 2: "dog", 5: "car"}
PHOTOGRAPHS = [("cat", "cat"), ("dog", "dog"), ("cat", "dog"), ("car", "cat"), ("dog", "cat")]
"""The objects in the left and right half of each photograph."""
SIDE = 96


class Knowing:
    """A model whose cells hold the class of their object, except that it takes cars for dogs."""

    config = EDGE

    def __init__(self) -> None:
        self.halves: dict[bytes, list[int]] = {}

    def encode(self, encoded: bytes, size: int) -> ImageFeatures:
        classes_hw = np.repeat([self.halves[encoded]], 16, axis=0).repeat(8, axis=1)
        return features_of(Geometry(SIDE, SIDE, 128), classes_hw, 3)

    def embed_image(self, encoded: bytes) -> np.ndarray:
        vector_D = np.bincount(self.halves[encoded], minlength=3)
        return vector_D / np.linalg.norm(vector_D)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        words = list(NAMES.values())
        return np.eye(3)[[next(i for i, word in enumerate(words) if word in t) for t in texts]]


def thing(value: int, x: int) -> dict[str, object]:
    mask_HW = np.zeros((SIDE, SIDE), np.bool_)
    mask_HW[20:60, x : x + 40] = True
    return instance(mask_HW, category_id=value, iscrowd=0)


@pytest.fixture
def metrics(tmp_path: Path) -> dict[str, float]:
    model, samples = Knowing(), {}
    values = {name: value for value, name in NAMES.items()}
    for number, names in enumerate(PHOTOGRAPHS):
        encoded = jpg(draw(number).image_HW3)
        things = [thing(values[name], 4 + 48 * half) for half, name in enumerate(names)]
        small = thing(1, 0) | {"area": 1023}
        info = {"instances": [*things, small, thing(2, 0) | {"iscrowd": 1}]}
        samples[str(number)] = {"jpg": encoded, "json": json.dumps(info).encode()}
        model.halves[encoded] = [{"cat": 0, "dog": 1, "car": 1}[name] for name in names]
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    classes = [{"id": value, "name": name} for value, name in NAMES.items()]
    content = {"classes": [*classes, {"id": 92, "name": "banner"}]}
    (tmp_path / "coco_multi/classes.json").write_text(json.dumps(content))
    return regions.own_sets(model, Options(root=tmp_path))


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_objects_are_named_and_find_photographs_of_their_class(
    metrics: dict[str, float], kind: str
) -> None:
    name = f"coco_multi_region_{kind}"
    assert metrics["coco_multi_region_objects"] == 10
    assert metrics["coco_multi_region_photographs"] == 5
    assert metrics[f"{name}_top1"] == 0.9  # all but the car
    assert metrics[f"{name}_top1_low"] <= 0.9 <= metrics[f"{name}_top1_high"]
    assert metrics[f"{name}_top5"] == 1
    # Only the cats' and dogs' photographs are looked for: no other photograph holds a car.
    assert metrics[f"{name}_to_image_r5"] == 1


def test_a_query_of_two_parts_finds_photographs_that_hold_both(metrics: dict[str, float]) -> None:
    precision = {
        way: metrics[f"coco_multi_two_classes_{way}_map"]
        for way in ("text_alone", "region_alone", "region_with_text", "image_with_text")
    }
    assert precision["region_with_text"] > precision["region_alone"]
    assert precision["region_with_text"] > precision["text_alone"]
    assert precision["image_with_text"] > precision["text_alone"]
