"""Checkpoints as teachers answer as the library does."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samclip_core.config import VIT_B
from samclip_core.errors import CheckpointError
from samclip_core.families.clip import CLIP_B
from samclip_core.families.mobile_sam.network import TinyViTEncoder
from samclip_core.io import checkpoint
from samclip_core.licence import strictest
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from tests.tiny import BESIDE_MOBILE_SAM, WITHOUT_MASKS, make_tiny_checkpoint
from training import merges
from training.distillation.teachers import CheckpointTeacher, load_sam, load_words, student_from_sam
from training.merges import merge_vit_b
from training.recipes import Run, mobile

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pair": ("pair", {}),
    "radio": ("radio", {"image_size": 128}),
    "radio without masks": ("radio", WITHOUT_MASKS),
    "radio beside MobileSAM": ("radio", BESIDE_MOBILE_SAM),
    "vit-b": ("vit-b", {}),
}


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, changes = KINDS[request.param]
    return make_tiny_checkpoint(tmp_path_factory.mktemp("teacher") / "it", kind, **changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with MobileSAM's encoder."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("pair") / "it", "pair")


def picture(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def test_words_are_those_of_the_library(directory: Path):
    teacher, text_encoder, weights, describe_in = load_words(str(directory))
    assert isinstance(teacher.train(), CheckpointTeacher)
    assert not any(one.requires_grad for one in teacher.parameters())
    assert weights == directory
    side = teacher.view.side
    pixels_13SS = torch.from_numpy(picture(side)).permute(2, 0, 1)[None].float()
    dense_1Dhw, pooled_1D = teacher(pixels_13SS, torch.tensor([[side, side]]))
    model = SamClip.load(directory, engine="torch")
    expected = model.encode(picture(side), side)
    np.testing.assert_allclose(pooled_1D[0], expected.clip_pooled_D, atol=1e-5)
    np.testing.assert_allclose(dense_1Dhw[0], expected.clip_dense_Dhw, atol=1e-5)
    student = describe_in(
        checkpoint.read_config(make_tiny_checkpoint(directory.parent / "student"))
    )
    assert (student.text, student.logit_scale) == (model.config.text, model.config.logit_scale)
    with torch.no_grad():
        np.testing.assert_allclose(
            text_encoder.embed(["cat"]), model.embed_text(["cat"]), atol=1e-5
        )


def test_masks_are_those_of_the_library(directory: Path):
    own = checkpoint.read_config(directory)
    if not own.masks:
        with pytest.raises(CheckpointError, match="makes no masks, so it cannot teach them"):
            load_sam(str(directory))
        return
    teacher, config = load_sam(str(directory))
    assert (config.kind, config.networks, config.image_size) == ("vit-b", {}, own.image_size)
    pixels_13SS = torch.from_numpy(picture(own.image_size)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        found = teacher.image_encoder(pixels_13SS, torch.tensor([[own.image_size] * 2])).sam_BDhw
    expected = SamClip.load(directory, engine="torch").encode(picture(own.image_size)).sam_Dhw
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_student_does_not_start_from_an_encoder_that_is_not_sams(tmp_path: Path):
    radio = str(make_tiny_checkpoint(tmp_path / "radio", "radio", image_size=128))
    run = Run(recipe=mobile(), config=VIT_B, data="", folder="", sam=radio, clip=radio)
    with pytest.raises(CheckpointError, match=r"is not one of SAM's, .* give --start, weights of"):
        merge_vit_b(run)


def test_a_student_of_mobile_sam_starts_with_its_last_block_over_the_whole_map(pair: Path):
    """On a map of one window, without TinyViT's position biases and convolution."""
    teacher, config = load_sam(str(pair))
    student = student_from_sam(teacher, config).eval()
    assert isinstance(student.image_encoder, TinyViTEncoder)
    last = student.image_encoder.stages[-1].blocks[-1]
    x_17730 = torch.randn(1, 7, 7, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last.attn.attention_biases.zero_()
        x_1ND = x_17730.flatten(1, 2)
        x_1ND = x_1ND + last.attn(x_1ND)
        expected = (x_1ND + last.mlp(x_1ND)).unflatten(1, (7, 7))
        for block in student.clip_head.blocks:
            torch.testing.assert_close(block(x_17730), expected, atol=1e-3, rtol=1e-3)


def test_position_biases_that_learn_are_read_again(pair: Path):
    """Networks learn in evaluation mode, in which timm keeps the biases of the first call."""
    net = load_net(pair).requires_grad_(True).eval()
    biases = net.image_encoder.stages[-1].blocks[-1].attn.attention_biases
    given = torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]])
    before = net.image_encoder(*given).sam_BDhw
    before.sum().backward()
    assert biases.grad.any()
    with torch.no_grad():
        biases.add_(torch.randn(biases.shape, generator=torch.Generator().manual_seed(0)))
    after = net.image_encoder(*given).sam_BDhw
    after.sum().backward()
    assert not torch.allclose(before, after)


def test_the_parts_of_teachers_have_their_licences(pair: Path, tmp_path: Path):
    file = tmp_path / "own.pth"
    file.write_bytes(b"weights")
    pair = Path(shutil.copytree(pair, tmp_path / "pair"))
    (published,) = CLIP_B.source.files.values()
    sources = {
        "radio": {"file": "radio.pth", "sha256": "1"},
        "clip": {"file": "a", "sha256": published},
    }
    (pair / checkpoint.LINEAGE).write_text(json.dumps({"sources": sources}))
    checkpoint.seal(pair)
    parts = merges.parts_of([file, pair, file])
    assert [part["licence"] for part in parts] == [
        "not stated",
        merges.RADIO,
        CLIP_B.source.licence,
    ]
    assert parts[0]["address"] == f"own.pth {checkpoint.sha256(file)}"
    assert parts[2]["address"] == CLIP_B.source.address
    assert merges.licences(parts[1:])["licence"] == merges.RADIO
    assert merges.licences([]) == {}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["apache-2.0", "MIT (CLIP, OpenAI)"], "apache-2.0"),
        (
            ["Apache-2.0 (SAM)", "NVIDIA Open Model License (C-RADIO)"],
            "NVIDIA Open Model License (C-RADIO)",
        ),
        (["NVIDIA Open Model License", "research only"], "research only"),
        (["not stated", "MIT", "research only", "not stated"], "not stated and research only"),
    ],
)
def test_the_strictest_licence_is_the_one_with_most_conditions(licences: list[str], expected: str):
    assert strictest(licences) == expected
