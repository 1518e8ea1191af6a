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
        oracle.images[classification.centre_square(encoded).tobytes()] = np.eye(7)[truth]
        folder = tmp_path / f"val/n0000000{truth}"
        folder.mkdir(parents=True)
        (folder / "one.JPEG").write_bytes(encoded)
    for name in names:
        (tmp_path / "val" / name).mkdir(exist_ok=True)
    assert classification.folders(oracle, Options(root=tmp_path)) == {
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
    found_LL3 = classification.centre_square(png(image_HW3))
    assert np.abs(found_LL3.transpose(2, 0, 1).astype(int) - expected_3LL.numpy()).max() == 0


def write_places(root: Path, layout: str) -> Oracle:
    """Write a photograph of each of two places, of which one is recognised."""
    oracle = Oracle()
    places = {"airfield": 0, "apartment_building/outdoor": 1}
    rows = []
    for name, index in places.items():
        encoded = jpg(draw(index).image_HW3)
        oracle.images[encoded] = np.eye(2)[0]
        oracle.images[classification.centre_square(encoded).tobytes()] = np.eye(2)[1]
        oracle.texts[EDGE.templates[0].format(name.replace("_", " ").replace("/", " "))] = np.eye(
            2
        )[index]
        folder = root / "val_256" if layout == "lists" else root / "val" / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"Places365_val_0000000{index}.jpg").write_bytes(encoded)
        rows.append(f"Places365_val_0000000{index}.jpg {index}")
    if layout == "lists":
        categories = [f"/{name[0]}/{name} {index}" for name, index in places.items()]
        (root / "categories_places365.txt").write_text("\n".join(categories) + "\n")
        (root / "places365_val.txt").write_text("\n".join(rows) + "\n")
    return oracle


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_places365_in_both_of_its_layouts(tmp_path: Path, layout: str):
    oracle = write_places(tmp_path, layout)
    found = classification.places365(oracle, Options(root=tmp_path))
    assert found == {"top1": 0.5, "top5": 1.0, "paper_top1": 0.5, "paper_top5": 1.0}


def test_a_missing_list_of_places_is_named(tmp_path: Path):
    (tmp_path / "val_256").mkdir()
    with pytest.raises(FileNotFoundError, match=r"list of classes.*categories_places365\.txt"):
        classification.places365(Oracle(), Options(root=tmp_path))
