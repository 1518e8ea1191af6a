"""The paper's merge of a small SAM and a small CLIP, whose files have the official layout."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from samclip_core.engine import graphs
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.model import SamClip
from samclip_core.nn import tokenizer
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.text_encoder import load_text_encoder
from samclip_core.types import Prompt
from tests import photographs
from tests.clip_models import TEXT_DIM, write_siglip
from tests.official import small_sam, write
from tests.official_pair import FRAME, QUICK, WIDTH, Official, recipe, write_official
from training import train, workers

pytestmark = pytest.mark.slow

TEXTS = ["a photo of a dog", "a cat"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Run workers outside Ray, and restore the number of threads afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "get_device", lambda: torch.device("cpu"))
        patch.setattr(workers, "report", lambda figures: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def merged(official: Official, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of the command, with a recipe of one's own."""
    folder = tmp_path_factory.mktemp("of-1")
    own = folder / "own.py"
    own.write_text(f"from {recipe.__module__} import recipe\n\ndef small():\n    return recipe()\n")
    files = "--sam", str(official.sam), "--clip", official.clip
    others = "--data", str(official.data), "--out", str(folder), "--threads", "1"
    arguments = ["--recipe", f"{own}:small", *files, *others]
    assert train.main(arguments) == 0
    return folder


def test_the_config_is_that_of_both_teachers(official: Official, merged: Path):
    config = checkpoint.read_config(merged / "checkpoint")
    weights = Path(official.clip.partition(":")[2]) / "open_clip_model.safetensors"
    assert (config.kind, config.backbone, config.image_size) == ("vit-b", "tiny", FRAME)
    assert (config.embed_dim, config.text_dim) == (WIDTH, TEXT_DIM)
    assert config.logit_scale == pytest.approx(read_state(weights)["logit_scale"].exp().item())
    assert config.text.open_clip == QUICK
    lineage = json.loads((merged / "checkpoint" / checkpoint.LINEAGE).read_text())
    assert lineage["teachers"] == {
        "clip": f"{weights.name} {checkpoint.sha256(weights)}",
        "clip_model": "clip",
        "sam": f"sam.pth {checkpoint.sha256(official.sam)}",
    }


def text_of(model: nn.Module, model_ids_TN: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.eval().encode_text(model_ids_TN, normalize=True).numpy()


def test_it_answers(merged: Path):
    model, drawing = SamClip.load(merged / "checkpoint", engine="torch"), photographs.draw(0)
    scores = model.classify(drawing.image_HW3, TEXTS)
    assert sum(score.score for score in scores) == pytest.approx(1, abs=1e-5)
    (answer,) = model.segment(drawing.image_HW3, [Prompt(points=((20.5, 30.5),))])
    assert answer.masks_MHW.shape == (3, *drawing.labels_HW.shape)


def test_a_teacher_like_siglip_trains_and_is_served(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the tokenizer that the checkpoint stores, from torch and from an exported graph."""
    clip = f"local-dir:{write_siglip(tmp_path / 'siglip')}"
    short = recipe(joint=None, adaptation=None)
    train.train_worker({"run": official.run(tmp_path, short, clip=clip)})
    directory, teacher = tmp_path / "checkpoint", load_official_clip(clip)
    model = SamClip.load(directory, engine="torch")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "open_clip", None)  # it would bring torch
        ids_TN = tokenizer.load(directory)(TEXTS)
    expected_TD = text_of(teacher.model, torch.from_numpy(ids_TN))
    np.testing.assert_allclose(model.embed_text(TEXTS), expected_TD, atol=1e-3, rtol=0)
    assert len(model.classify(photographs.draw(0).image_HW3, TEXTS)) == 2
    graph = graphs.text_encoder(load_text_encoder(directory), model.config)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    (exported_TD,) = session.run(None, {"ids": ids_TN})
    np.testing.assert_allclose(exported_TD, expected_TD, atol=1e-3, rtol=0)


def test_a_student_may_be_smaller_than_its_sam_teacher(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """``--start`` has the student's weights; masks are distilled through their logits."""
    from samclip_core.families.sam import VARIANTS

    deep = replace(VARIANTS["tiny"], depth=6, global_blocks=(2, 5))
    monkeypatch.setitem(VARIANTS, "deep", deep)
    teacher = write(small_sam(FRAME, WIDTH, variant="deep"), tmp_path, "deep.pth")
    short = recipe(head_probing=None, adaptation=None)
    files = {"sam": str(teacher), "start": str(official.sam)}
    train.train_worker({"run": official.run(tmp_path, short, **files)})
    assert checkpoint.read_config(tmp_path / "checkpoint").backbone == "tiny"
    log = np.loadtxt(tmp_path / "states/joint.losses.tsv", skiprows=1)
    assert np.isfinite(log).all()


def test_sam_teachers_of_another_frame_are_refused(official: Official, tmp_path: Path):
    small = write(small_sam(FRAME // 2, WIDTH), tmp_path, "small.pth")
    with pytest.raises(ValueError, match="give --mask-teacher and --start of one frame size"):
        train.train_worker({"run": official.run(tmp_path, recipe(), start=str(small))})
