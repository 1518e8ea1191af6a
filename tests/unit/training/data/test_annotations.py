"""Annotations of every source become regions and label maps; broken ones are named."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests import photographs
from tests.photographs import draw, instance, png, sample, write_shard
from training.data.annotations import class_names, decoded, label_map, read_shards, regions
from training.data.sample import BadSample

SHAPE = (40, 60)  # of ``sample``


def block(rows: slice, columns: slice) -> np.ndarray:
    mask_HW = np.zeros(SHAPE, np.bool_)
    mask_HW[rows, columns] = True
    return mask_HW


CAR, SKY = block(slice(5, 30), slice(5, 25)), block(slice(40), slice(40, 60))
SPECK = block(slice(2), slice(3))
"""Too small to be a region."""


def same(masks: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return sorted(m.tobytes() for m in masks) == sorted(m.tobytes() for m in expected)


def test_a_broken_sample_is_left_out_of_the_list(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = {"jpg": b"a", "json": b"{}"}
    write_shard(
        tmp_path / "set/val-0.tar", {"a": good, "b": {"jpg": b"b", "json": b"{"}, "c": good}
    )
    assert [s.key for s in read_shards(tmp_path, "set", "val")] == ["a", "c"]
    assert "skipped: set/b: its json, caption or class cannot be read" in caplog.text


def test_class_names_leave_out_what_is_not_a_class(tmp_path: Path):
    photographs.write_classes(tmp_path / "set", {0: "various", 1: "car", 5: "sky"}, ignored=(0,))
    names = {1: "car", 5: "sky"}
    assert class_names(tmp_path, "set") == class_names(str(tmp_path), "set") == names
    fsspec.filesystem("memory").put(f"{tmp_path}/set", "named/set", recursive=True)
    assert class_names("memory://named", "set") == names


def test_a_label_map_is_read_as_it_was_written():
    labels_HW = draw(0).labels_HW
    assert np.array_equal(label_map(sample("camvid", label_png=png(labels_HW))), labels_HW)


def test_the_regions_of_every_annotator_count_unless_tiny():
    left, right = block(slice(None), slice(20)), block(slice(None), slice(20, 60))
    speck, rest = block(slice(4), slice(6)), block(slice(10, 40), slice(60))
    info = {
        "annotations": [
            {"instances": [instance(left), instance(right)]},
            {"instances": [instance(speck), instance(rest)]},
        ]
    }
    assert same(decoded(regions(sample("bsds500", info=info))), [left, right, rest])


def test_a_panoptic_picture_gives_its_segments_but_not_the_void():
    ids_HW = np.zeros(SHAPE, np.uint8)
    for value, mask in {3: CAR, 9: SKY, 11: SPECK}.items():
        ids_HW[mask] = value
    found = regions(sample("coco_multi", instance_png=png(ids_HW), label_png=png(ids_HW)))
    assert same(decoded(found), [CAR, SKY])


def test_things_only_gives_the_instances_without_crowds():
    things = [(CAR, 0), (SKY, 1), (SPECK, 0)]
    info = {"instances": [instance(mask, iscrowd=crowd) for mask, crowd in things]}
    labels = png(np.zeros(SHAPE, np.uint8))
    found = regions(sample("coco_multi", info=info, label_png=labels))
    assert same(decoded(found), [CAR])


def test_the_annotations_of_sa_1b_are_regions():
    info = {"image": {}, "annotations": [instance(CAR, predicted_iou=0.9), instance(SPECK)]}
    assert same(decoded(regions(sample("sa_1b", info=info))), [CAR])
    assert regions(sample("sa_1b", info={"image": {}, "annotations": []})) == []


BROKEN_SEGMENTATIONS = {
    "absent": None,
    "no counts": {"size": [40, 60]},
    "no size": {"counts": "0"},
    "size of one": {"size": [40], "counts": "0"},
    "empty": {"size": [40, 60], "counts": ""},
    "cut short": {"size": [40, 60], "counts": "P"},  # an incomplete number
    "other characters": {"size": [40, 60], "counts": "\x01\x02"},
}


@pytest.mark.parametrize("broken", BROKEN_SEGMENTATIONS.values(), ids=list(BROKEN_SEGMENTATIONS))
@pytest.mark.parametrize("source", ["sa_1b", "bsds500", "coco_multi"])
def test_a_broken_outline_is_the_samples_fault(source: str, broken: object):
    outline = {"segmentation": broken, "area": 99, "iscrowd": 0}
    info = {
        "sa_1b": {"annotations": [outline]},
        "bsds500": {"annotations": [{"instances": [outline]}]},
        "coco_multi": {"instances": [outline]},
    }[source]
    with pytest.raises(BadSample, match=f"{source}/one: its regions are broken: "):
        regions(sample(source, info=info))


def test_a_broken_label_map_is_the_samples_fault():
    labels = png(draw(0).labels_HW)
    for broken in (b"", b"no picture", labels[:60], labels[:40] + bytes(20) + labels[60:]):
        with pytest.raises(BadSample, match="camvid/one: its label map is broken"):
            label_map(sample("camvid", label_png=broken))
    with pytest.raises(BadSample, match="its label map is broken"):
        regions(sample("coco_multi", instance_png=labels[:60]))


@pytest.mark.parametrize(("source", "ignored"), [("labelmefacade", 0), ("camvid", 255)])
def test_the_connected_parts_of_a_label_map_stand_for_objects(source: str, ignored: int):
    near, far = block(slice(5, 20), slice(5, 20)), block(slice(25, 38), slice(30, 50))
    beside, speck = block(slice(5, 20), slice(20, 40)), block(slice(9), slice(50, 60))
    labels_HW = np.full(SHAPE, ignored, np.uint8)
    labels_HW[near | far | speck] = 4  # the speck has 90 pixels
    labels_HW[beside] = 5
    found = regions(sample(source, label_png=png(labels_HW)))
    assert same(decoded(found), [near, far, beside])
