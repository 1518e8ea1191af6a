"""The ``debug`` recipe end to end, on photographs that the test draws."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core import checkpoint
from samclip_core.config import EDGE
from samclip_core.model import SamClip
from samclip_core.text import TextEncoder
from samclip_core.types import Prompt
from tests import photographs
from training import stages, train
from training.recipes import Run, debug
from training.teachers import class_embeddings, imagenet_classifier

STAGES = ("sam-teacher", "head-probing", "joint")


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in another order are other sums; a training sets the number of threads for good."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    photographs.write_training_sets(root)
    return root


@pytest.fixture(scope="module", autouse=True)
def _names_are_embedded_once() -> Iterator[None]:
    """A thousand names take seconds, and are the same in every run."""
    known: list[torch.Tensor] = []

    def embed(tower: TextEncoder, names: Sequence[str]) -> torch.Tensor:
        if not known:
            known.append(class_embeddings(tower, names))
        return known[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "class_embeddings", embed)
        yield


def start(data: Path, out: Path) -> int:
    return train.main(
        ["--recipe", "debug", "--data", str(data), "--out", str(out), "--threads", "1"]
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "debug"
    assert start(data, out) == 0
    return out


@pytest.fixture(scope="module")
def model(trained: Path) -> SamClip:
    return SamClip.load(trained / "checkpoint")


def test_the_checkpoint_is_whole_and_keeps_the_text_tower(model: SamClip, trained: Path):
    assert model.config == EDGE
    bundled = checkpoint.resolve("edge")
    for file in (checkpoint.TEXT_WEIGHTS, checkpoint.TOKENIZER):
        assert (trained / "checkpoint" / file).read_bytes() == (bundled / file).read_bytes()


def test_it_says_where_it_comes_from(trained: Path, data: Path):
    lineage = json.loads((trained / "checkpoint" / checkpoint.LINEAGE).read_text())
    assert lineage["recipe"]["name"] == "debug"
    assert set(lineage["teachers"]) == {"clip", "sam", "text"}
    assert lineage["data"] == {
        source: {"train-00000.tar": checkpoint.sha256(data / source / "train-00000.tar")}
        for source in ("bsds500", "camvid")
    }


def test_it_classifies(model: SamClip):
    labels = ["thing 1", "thing 2", "a red car"]
    scores = model.classify(photographs.draw(0).image_HW3, labels)
    assert {score.label for score in scores} == set(labels)
    assert sum(score.score for score in scores) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(model.embed_image(photographs.draw(0).image_HW3)) == pytest.approx(1)


def test_it_segments(model: SamClip):
    drawing = photographs.draw(0)
    features = model.encode(photographs.jpg(drawing.image_HW3))
    boxed, pointed = model.segment(
        features, [Prompt(box=(10, 10, 60, 90)), Prompt(points=((20.5, 30.5),))]
    )
    for answer in (boxed, pointed):
        assert answer.masks_MHW.shape == (3, *drawing.labels_HW.shape)
        assert np.isfinite(answer.logits_Mhw).all()
    answer = model.segment_text(features, ["grass", "sky"])
    assert answer.label_map_HW.shape == drawing.labels_HW.shape
    assert set(np.unique(answer.label_map_HW)) <= {0, 1}


def test_every_stage_leaves_its_losses(trained: Path):
    columns = {"sam-teacher": 2, "head-probing": 3, "joint": 4}
    for stage, count in columns.items():
        log = np.loadtxt(trained / f"states/{stage}.losses.tsv", ndmin=2)
        assert log.shape == (2, count)
        assert log[:, 0].tolist() == [0, 1]
        assert np.isfinite(log).all()
        assert (log[:, 1:] > 0).all()


def test_each_stage_moves_its_own_parts(trained: Path):
    """The encoder is SAM's, its trunk blended, until the joint stage; prompts are to the end."""
    teacher, probed, joint = (
        torch.load(trained / f"states/{stage}.state.pt", weights_only=True) for stage in STAGES
    )
    taught = {key.removeprefix("module."): value for key, value in teacher["averaged"].items()}
    trunk, share = "image_encoder.trunk.", debug().imagenet_share
    for key, value in imagenet_classifier(0).state_dict().items():
        if trunk + key in taught and value.is_floating_point():
            taught[trunk + key] = taught[trunk + key].lerp(value, share)
    moved = {
        "probed": _moved(taught, probed["model"]),
        "joint": _moved(probed["model"], joint["model"]),
    }
    assert moved == {"probed": set(), "joint": {"image_encoder", "clip_head", "mask_decoder"}}


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    common = before.keys() & after.keys()
    return {key.partition(".")[0] for key in common if not before[key].equal(after[key])}


def stop_at(stage: int, step: int) -> Callable[[Run, int, int], stages.Rng]:
    """Draws random numbers as ever, but not for one step: there, the power fails."""
    seeded = stages.seeded

    def draw(run: Run, at_stage: int, at_step: int) -> stages.Rng:
        if (at_stage, at_step) == (stage, step):
            raise StoppedError
        return seeded(run, at_stage, at_step)

    return draw


def test_a_run_that_stops_in_every_stage_ends_as_one_that_never_did(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for stage, name in enumerate(STAGES):
        with monkeypatch.context() as power:
            power.setattr(stages, "seeded", stop_at(stage, 1))
            with pytest.raises(StoppedError):
                start(data, tmp_path)
        log = tmp_path / f"states/{name}.losses.tsv"
        assert len(log.read_text().splitlines()) == 1
        assert not (tmp_path / "checkpoint").exists()
    assert start(data, tmp_path) == 0
    for name in STAGES:
        resumed, whole = (folder / f"states/{name}.losses.tsv" for folder in (tmp_path, trained))
        assert resumed.read_text() == whole.read_text()
    resumed, whole = (folder / "checkpoint" / checkpoint.WEIGHTS for folder in (tmp_path, trained))
    assert resumed.read_bytes() == whole.read_bytes()
