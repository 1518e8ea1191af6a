"""TIPSv2 from its published files: what a folder must have, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samclip_core.commands.convert import convert
from samclip_core.config import VIT_B
from samclip_core.errors import CheckpointError, InvalidLabels
from samclip_core.io import checkpoint
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.official_tips import TEMPLATES, is_tips, load_official_tips
from samclip_core.nn.tips import TipsTower
from samclip_core.nn.tokenizer import load as load_tokenizer
from tests.official import small_sam, write
from tests.tips_models import DEPTH, HIDDEN, WIDTH, WORDS, text, vision, write_tips, write_tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tips(tmp_path / "tips")


@pytest.mark.parametrize("gated", [False, True])
def test_sizes_are_those_of_the_tensors(tmp_path: Path, gated: bool):
    official = load_official_tips(write_tips(tmp_path / "tips", gated))
    tower = official.text.image
    assert tower is not None
    assert (tower.width, tower.depth, tower.side, tower.gated) == (WIDTH, DEPTH, 448, gated)
    assert tower.hidden == (2 * HIDDEN if gated else HIDDEN)
    assert (official.text.layers, official.text.vocabulary) == (DEPTH, len(WORDS) + 2)
    config = official.describe_in(VIT_B)
    assert config.logit_scale == pytest.approx(50)
    assert config.templates == TEMPLATES
    assert type(config).from_json(config.to_json()) == config
    official.fill_tower(TipsTower(tower))
    assert official.text_encoder().embed(["a cat"]).shape == (1, WIDTH)


def test_a_pair_reads_the_frame_for_words(tmp_path: Path, folder: Path):
    sam = write(small_sam(256, 32), tmp_path, "sam.pth")
    convert(sam, f"local-dir:{folder}", tmp_path / "pair", sides=(240, 256))
    config = checkpoint.read_config(tmp_path / "pair")
    assert config.text.image is not None
    assert (config.text.image.side, config.size_of("semantic")) == (238, 240)  # 17 patches of 14
    assert load_tokenizer(tmp_path / "pair")(["a cat"])[0, :3].tolist() == [2, 5, 0]


def test_texts_are_bytes_where_there_is_no_piece(folder: Path):
    """Only ASCII's capitals become small, and padding is no word."""
    tokenizer = load_official_tips(folder).text_encoder().tokenizer
    cat, do, g, unknown = 5, 6, 8 + WORDS[8:].index("g") + 2, 1
    found = tokenizer(["A CAT", "cat\tdog", "É <pad>"])
    assert found.shape == (3, 64)
    assert found[0, :3].tolist() == [2, cat, 0]
    assert found[1, :3].tolist() == [cat, do + 2, 0]
    assert unknown in found[2]
    assert 0 not in found[2, :3]
    assert g
    with pytest.raises(InvalidLabels, match="text 1 has no visible character"):
        tokenizer(["a", "\u00ad"])


def _without(name: str, key: str) -> "callable":
    return None
