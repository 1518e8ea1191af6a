import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.coco_set import INSTANCES, write, write_coco
from tests.oracle import Oracle
from tests.photographs import annotated, draw, instance, jpg, rle, things, write_shard
from training.evaluation import instances
from training.evaluation.suite import Options, own_samples


def test_boxes_and_points_ask_for_the_regions_that_people_outlined(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    masks = [mask for drawing in drawings for mask in drawing.masks]
    coco = {str(place): things(drawing) for place, drawing in enumerate(drawings)}
    nothing = {"jpg": jpg(draw(7).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "coco_multi/val-0.tar", coco | {"nothing": nothing})
    write_shard(
        tmp_path / "bsds500/val-0.tar", {str(i): annotated(d) for i, d in enumerate(drawings)}
    )

    metrics = instances.own_sets(Oracle(drawings), Options(root=tmp_path))

    share = np.mean([mask.mean() for mask in masks])
    for source in ("coco_multi", "bsds500"):
        assert metrics.pop(f"{source}_box_miou") == 1
        assert metrics.pop(f"{source}_point_best_of_3_miou") == 1
        # The first of the three masks, with the highest predicted IoU, is everything.
        assert metrics.pop(f"{source}_point_miou") == pytest.approx(share)
    assert metrics == {"coco_multi_things_box_miou": 1}


def test_things_are_neither_crowds_nor_small_nor_stuff(tmp_path: Path):
    """A ring of 32² pixels counts by its area, not by its box, which the oracle fills."""
    drawing = draw(0)
    ring = np.zeros(drawing.labels_HW.shape, np.bool_)
    ring[20:56, 20:56] = True
    ring[27:43, 28:45] = False  # 36² - 16 * 17 = 32²
    small, crowd = np.zeros_like(ring), np.zeros_like(ring)
    small[:31, :33] = True
    crowd[60:110, 60:150] = True
    annotations = [
        instance(ring, iscrowd=0),
        instance(small, iscrowd=0),
        instance(crowd, iscrowd=1),
    ]
    sample = {
        "jpg": jpg(drawing.image_HW3),
        "json": json.dumps({"instances": annotations}).encode(),
    }
    write_shard(tmp_path / "coco_multi/val-0.tar", {"one": sample})
    write_shard(tmp_path / "bsds500/val-0.tar", {"one": annotated(drawing)})
    metrics = instances.own_sets(Oracle([drawing]), Options(root=tmp_path))
    assert metrics["coco_multi_things_box_miou"] == pytest.approx(32**2 / 36**2)
    assert metrics["coco_multi_box_miou"] == pytest.approx((1 + 32**2 / 36**2) / 2)


@pytest.mark.data
def test_how_many_things_the_validation_photographs_hold(data_root: Path):
    samples = own_samples(Options(root=data_root), "coco_multi")
    assert sum(len(instances.things(sample)) for sample in samples) == 399


def written(root: Path, count: int) -> tuple[Oracle, list[dict]]:
    """Write some drawings as COCO; return a model that knows them, and their annotations."""
    drawings = [draw(seed) for seed in range(count)]
    write_coco(root, drawings)
    return Oracle(drawings), json.loads((root / INSTANCES).read_text())["annotations"]


def test_true_boxes_of_rectangles_are_perfect(tmp_path: Path):
    oracle, _ = written(tmp_path, 3)
    assert instances.coco_boxes(oracle, Options(root=tmp_path))["ap"] == pytest.approx(1)
    lvis = instances.lvis_boxes(oracle, Options(root=tmp_path))
    assert (lvis["ap"], lvis["ap_frequent"]) == (pytest.approx(1), pytest.approx(1))


def test_a_detectors_boxes_have_its_scores_and_stay_in_the_picture(tmp_path: Path):
    oracle, annotations = written(tmp_path, 2)
    keys = ("image_id", "category_id", "bbox")
    found = [{key: a[key] for key in keys} | {"score": 0.5} for a in annotations]
    wrong = [f | {"bbox": [-30, -30, 60, 60], "score": 0.9} for f in found]
    outside = [f | {"bbox": [170, 5, 20, 20], "score": 1.0} for f in found]
    detections = tmp_path / "detections.json"
    options = Options(root=tmp_path, detections=detections)
    detections.write_text(json.dumps(found + outside))
    assert instances.coco_boxes(oracle, options)["ap"] == pytest.approx(1)
    detections.write_text(json.dumps(found + wrong))
    assert 0.3 < instances.coco_boxes(oracle, options)["ap"] < 0.7  # the worse half comes first
    detections.write_text(
        json.dumps([f | {"score": 0.1} if f in wrong else f for f in found + wrong])
    )
    assert instances.coco_boxes(oracle, options)["ap"] == pytest.approx(1)


def test_the_limit_takes_pictures_not_boxes(tmp_path: Path):
    oracle, _ = written(tmp_path, 3)
    for unseen in ("1", "2"):
        (tmp_path / f"val2017/{unseen}.jpg").write_bytes(b"never read")
    options = Options(root=tmp_path, limit=1)
    assert instances.coco_boxes(oracle, options)["ap"] == pytest.approx(1)


def test_coco_json_without_its_crowds(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    write_coco(tmp_path, [*drawings, replace(draw(7), labels_HW=np.zeros((120, 160), np.uint8))])
    content = json.loads((tmp_path / INSTANCES).read_text())
    crowd = {"iscrowd": 1, "segmentation": rle(np.ones((120, 160), np.bool_))}
    content["annotations"].append(content["annotations"][0] | {"id": 99} | crowd)
    write(tmp_path / INSTANCES, content)
    metrics = instances.public_points(Oracle(drawings), Options(root=tmp_path))
    # Of the three masks, everything has the highest predicted IoU.
    share = np.mean([mask.mean() for drawing in drawings for mask in drawing.masks])
    assert metrics == {"point_best_of_3_miou": 1, "point_most_confident_miou": pytest.approx(share)}


def test_sa1b_folders(tmp_path: Path):
    drawing = draw(4)
    folder = tmp_path / "sa_000000"
    folder.mkdir()
    (folder / "sa_1.jpg").write_bytes(jpg(drawing.image_HW3))
    outlines = [{"segmentation": rle(mask)} for mask in drawing.masks]
    outlines.append({"segmentation": rle(np.zeros_like(drawing.masks[0]))})
    (folder / "sa_1.json").write_text(json.dumps({"annotations": outlines}))
    metrics = instances.public_points(Oracle([drawing]), Options(root=tmp_path))
    assert metrics["point_best_of_3_miou"] == 1
    assert metrics["point_most_confident_miou"] == pytest.approx(
        np.mean([mask.mean() for mask in drawing.masks])
    )
