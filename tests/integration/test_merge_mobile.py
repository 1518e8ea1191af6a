"""The recipe ``mobile`` on tiny data: published models, as checkpoints, teach a small student."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import yaml

from samclip_core.engine import graphs
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.types import Prompt
from tests import photographs
from tests.tiny import make_tiny_checkpoint
from training import train
from training.journal import Journal
from training.loop import Stage
from training.recipes import Recipe, Run, debug, mobile

pytestmark = pytest.mark.slow

STAGES = "head-probing", "joint", "adaptation"
NVIDIA = "NVIDIA Open Model License (C-RADIO; commercial use is allowed)"
LABELS = ["grass", "sky"]


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


def _no_report(_: Run, checkpoint: Path) -> None:
    (checkpoint.parent / "report.md").touch()


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """Draw no pictures, and restore the number of threads afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.report, "write", _no_report)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments of the command: the data, MobileSAM, and C-RADIO for words and maps."""
    root = tmp_path_factory.mktemp("inputs")
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
    given |= {"mask-teacher": root / "pair", "clip": radio, "dense": radio}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def run(inputs: list[str], out: Path) -> int:
    return train.main([*inputs, "--out", str(out)])


@pytest.fixture(scope="module")
def trained(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "mobile"
    assert run(inputs, out) == 0
    return out


def test_the_student_is_a_merged_mobile_sam_with_the_words_of_its_teacher(trained: Path):
    config = checkpoint.read_config(trained / "checkpoint")
    assert (config.kind, config.backbone, config.name) == ("vit-b", "mobile-sam", "mobile")
    assert (config.image_size, config.text.tower) == (128, "sentence")


def test_lineage_and_card_name_the_teachers_and_the_strictest_licence(trained: Path):
    directory = trained / "checkpoint"
    lineage = json.loads(checkpoint.read_file(directory, checkpoint.LINEAGE))
    teachers = {key: name.split(" ")[0] for key, name in lineage["teachers"].items()}
    assert teachers == {
        "clip": "tiny-radio",
        "clip_model": "",
        "dense": "tiny-radio",
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
        "head-probing": ["clip", "dense_teacher"],
        "joint": ["clip", "dense_teacher", "sam"],
        "adaptation": ["clip"],
    }
    for stage, names in expected.items():
        head, *rows = (trained / f"states/{stage}.losses.tsv").read_text().splitlines()
        assert head.split("\t")[1:-1] == names
        values = np.array([row.split("\t") for row in rows], float)
        assert len(values) == 2
        assert (values[-1, 1:] > 0).all()


def test_it_answers(trained: Path):
    model, image_HW3 = (
        SamClip.load(trained / "checkpoint", engine="torch"),
        photographs.draw(0).image_HW3,
    )
    features = model.encode(image_HW3)
    assert sum(one.score for one in model.classify(features, LABELS)) == pytest.approx(1)
    prompts = [Prompt(box=(10, 10, 60, 90)), Prompt(points=((20.5, 30.5),))]
    masks = [answer.masks_MHW.shape for answer in model.segment(features, prompts)]
    assert masks == [(3, *image_HW3.shape[:2])] * 2
    assert set(np.unique(model.segment_text(features, LABELS).label_map_HW)) <= {0, 1}


def test_its_encoder_can_be_exported(trained: Path):
    model = SamClip.load(trained / "checkpoint", engine="torch")
    prepared = model.prepare(photographs.draw(0).image_HW3)
    graph = ir.to_proto(graphs.image_encoder(load_net(trained / "checkpoint"), 128))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    sizes_12 = np.array([[prepared.geometry.input_height, prepared.geometry.input_width]])
    found = session.run(None, {"pixels": prepared.pixels_3SS[None], "sizes": sizes_12})
    features = model.encode(prepared)
    expected = features.sam_Dhw, features.clip_dense_Dhw, features.clip_pooled_D
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-3 * np.abs(other).max(), rtol=0)


class Killed(BaseException):
    """The end of a process in the middle of its work."""


def test_a_run_that_is_killed_in_each_stage_ends_as_one_that_never_was(
    inputs: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = Stage._save

    def save_and_die(stage: Stage, journal: Journal) -> None:
        save(stage, journal)
        if stage.done == 1:
            raise Killed

    monkeypatch.setattr(Stage, "_save", save_and_die)
    for stage in STAGES:
        with pytest.raises(Killed):
            run(inputs, tmp_path)
        assert (tmp_path / f"states/{stage}.state.pt").exists()
        assert not (tmp_path / "checkpoint").exists()
    assert run(inputs, tmp_path) == 0
    resumed, whole = (folder / "checkpoint" / checkpoint.WEIGHTS for folder in (tmp_path, trained))
    assert resumed.read_bytes() == whole.read_bytes()
