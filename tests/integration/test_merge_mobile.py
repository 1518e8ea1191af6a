"""The recipe ``mobile`` on tiny data: published models, as checkpoints, teach a small student."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from samclip_core.io import checkpoint
from tests import photographs
from tests.tiny import make_tiny_checkpoint
from training import train
from training.recipes import Recipe, debug, mobile

pytestmark = pytest.mark.slow

NVIDIA = "NVIDIA Open Model License (C-RADIO; commercial use is allowed)"


def recipe() -> Recipe:
    """Return the recipe with two steps a stage, small frames and one mask."""
    short = replace(debug().joint, save_every=1)
    return replace(
        mobile(),
        **dict.fromkeys(("head_probing", "joint", "adaptation"), short),
        dtype="float32",
        clip_images=2,
        photo_sides=(64, 96),
        adaptation_sides=(64, 128),
        photo_sets=debug().photo_sets,
        region_sets=debug().region_sets,
        sam_batch=replace(mobile().sam_batch, images=1, prompts=1, rounds=2),
    )


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of MobileSAM, and of C-RADIO for words."""
    root = tmp_path_factory.mktemp("mobile")
    photographs.write_training_sets(root / "sets")
    make_tiny_checkpoint(root / "pair", "pair")
    radio = make_tiny_checkpoint(root / "radio", "radio", image_size=64)
    lineage = {"published": [{"address": "hf://nvidia/C-RADIOv3-B", "licence": NVIDIA}]}
    (radio / checkpoint.LINEAGE).write_text(json.dumps(lineage))
    checkpoint.seal(radio)
    (root / "own.py").write_text(
        f"from {__name__} import recipe\n\ndef tiny():\n    return recipe()\n"
    )
    given = {"recipe": f"{root}/own.py:tiny", "data": root / "sets", "threads": 1}
    given |= {"mask-teacher": root / "pair", "clip": radio, "out": root / "run"}
    assert (
        train.main([word for pair in given.items() for word in (f"--{pair[0]}", str(pair[1]))]) == 0
    )
    return root / "run"


def test_the_student_is_a_merged_mobile_sam_whose_card_names_its_teachers(trained: Path):
    directory = trained / "checkpoint"
    config = checkpoint.read_config(directory)
    assert (config.kind, config.backbone, config.name) == ("vit-b", "mobile-sam", "mobile")
    assert (config.image_size, config.text.tower) == (128, "sentence")
    lineage = json.loads(checkpoint.read_file(directory, checkpoint.LINEAGE))
    teachers = {key: name.split(" ")[0] for key, name in lineage["teachers"].items()}
    assert teachers == {
        "clip": "tiny-radio",
        "clip_model": "",
        "sam": "tiny-pair",
    }
    assert [part["licence"] for part in lineage["published"]] == [NVIDIA, "not stated"]
    assert lineage["licence"] == "not stated"  # nobody has described the parts of the pair
    card = checkpoint.read_file(directory, checkpoint.CARD).decode()
    assert "- **clip**: tiny-radio " in card
    assert "The strictest licence of a part is: not stated." in card
    assert f"- {NVIDIA}: hf://nvidia/C-RADIOv3-B" in card
    about = yaml.safe_load(card.split("---\n")[1])
    assert (about["license"], about["base_model"]) == ("other", ["nvidia/C-RADIOv3-B"])


def test_every_stage_has_its_losses(trained: Path):
    expected = {
        "head-probing": ["clip"],
        "joint": ["clip", "sam"],
        "adaptation": ["clip"],
    }
    for stage, names in expected.items():
        head, *rows = (trained / f"states/{stage}.losses.tsv").read_text().splitlines()
        assert head.split("\t")[1:-1] == names
        values = np.array([row.split("\t") for row in rows], float)
        assert len(values) == 2
        assert (values[-1, 1:] > 0).all()
