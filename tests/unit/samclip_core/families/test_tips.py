"""TIPSv2 from its published files: what a folder must have, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samclip_core.commands.convert import convert
from samclip_core.config import VIT_B
from samclip_core.errors import CheckpointError
from samclip_core.families.tips.files import TEMPLATES, is_here, load
from samclip_core.families.tips.network import TipsTower
from samclip_core.families.tips.sentencepiece import read_sentencepiece
from samclip_core.io import checkpoint
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.tokenizer import load as load_tokenizer
from tests.official import small_sam, write
from tests.tips_models import DEPTH, HIDDEN, WIDTH, WORDS, text, vision, write_tips, write_tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tips(tmp_path / "tips")


@pytest.mark.parametrize("gated", [False, True])
def test_sizes_are_those_of_the_tensors(tmp_path: Path, gated: bool):
    official = load(write_tips(tmp_path / "tips", gated))
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
    lineage = json.loads(checkpoint.read_file(tmp_path / "pair", checkpoint.LINEAGE))
    files = {part: one["file"] for part, one in lineage["sources"].items()}
    assert files == {"sam": "sam.pth", "clip": "tiny_vision.npz", "text": "tiny_text.npz"}
    assert load_tokenizer(tmp_path / "pair")(["a cat"])[0, :3].tolist() == [2, 5, 0]


def test_only_capitals_of_ascii_become_small_and_padding_is_no_word(folder: Path):
    tokenizer = load(folder).text_encoder().tokenizer
    found = tokenizer(["A CAT", "cat\tdog", "É <pad>"])
    assert found.shape == (3, 64)
    cat, dog, unknown, padding = WORDS.index("▁cat") + 2, WORDS.index("▁dog") + 2, 1, 0
    assert found[0, :3].tolist() == [2, cat, padding]
    assert found[1, :3].tolist() == [cat, dog, padding]
    assert unknown in found[2]
    assert padding not in found[2, :3]


def test_letters_without_a_piece_are_bytes_if_the_model_says_so(tmp_path: Path):
    write_tokens(tmp_path, WORDS, byte_fallback=1)
    tokens = read_sentencepiece((tmp_path / "tokenizer.model").read_bytes())
    assert tokens.encode("cat É").tokens == ["▁cat", "▁", "<0xC3>", "<0x89>"]


def load_all(folder: Path) -> None:
    official = load(folder)
    assert official.text.image is not None
    official.text_encoder()
    official.fill_tower(TipsTower(official.text.image))


def rewrite(folder: Path, part: str, tensors: dict[str, np.ndarray], **more: object) -> None:
    np.savez(folder / f"tiny_{part}.npz", **tensors, **more)


def without(tensors: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    return {name: one for name, one in tensors.items() if name != key}


def page(folder: Path, **parts: dict[str, np.ndarray]) -> None:
    """Replace the files of the authors by those of a page."""
    state = {
        f"{p}_encoder.{k}": torch.from_numpy(one) for p in parts for k, one in parts[p].items()
    }
    for file in folder.glob("*.npz"):
        file.unlink()
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "tipsv2", "temperature_init_value": 0.005}
    heads = {f"{part}_config": {"num_attention_heads": 2} for part in parts}
    (folder / "config.json").write_text(json.dumps(config | heads))


def crowd(folder: Path, heads: int) -> None:
    """State another number of heads."""
    page(folder, vision=vision(), text=TEXT)
    config = {"model_type": "tipsv2", "temperature_init_value": 0.01}
    config |= {"text_config": {"num_attention_heads": heads}}
    (folder / "config.json").write_text(json.dumps(config))


def prepare(folder: Path, **processor: object) -> None:
    page(folder, vision=vision(), text=text(len(WORDS) + 2))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def test_a_page_says_heads_and_frame(folder: Path):
    prepare(folder, resample=2, size={"height": 224, "width": 224})
    official = load(folder)
    assert official.text.image is not None
    assert (official.text.heads, official.text.image.heads, official.text.image.side) == (2, 2, 224)
    assert official.logit_scale == pytest.approx(200)
    with pytest.raises(CheckpointError, match="other families only as the words of a pair"):
        load_official_clip(f"local-dir:{folder}")


TEXT = text(len(WORDS) + 2)
WARM = {"temperature": np.float32(0.02)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "tiny_text.npz").unlink(), "has tiny_vision.npz: expected one file"),
        (lambda at: (at / "tokenizer.model").unlink(), "has no tokenizer.model"),
        (lambda at: (at / "tokenizer.model").write_bytes(b"\x0a\xff"), "no model of SentencePiece"),
        (lambda at: write_tokens(at, WORDS[1:]), "tokens, the first '<pad>', and .* expects"),
        (lambda at: write_tokens(at, WORDS, model_type=1), "model type 1 .*expected BPE"),
        (lambda at: (at / "tiny_text.npz").write_bytes(b"PK"), "cannot be read as plain tensors"),
        (
            lambda at: np.savez_compressed(at / "tiny_text.npz", zeros=np.zeros(10**6)),
            "cannot be read as plain tensors",
        ),
        (lambda at: rewrite(at, "vision", without(vision(), "norm.weight")), "KeyError: 'norm.w"),
        (
            lambda at: rewrite(at, "vision", without(vision(), "blocks.1.norm1.bias")),
            r"tiny_vision.npz does not match TIPSv2's image tower: keys 1 missing \(blocks.1.norm1",
        ),
        (
            lambda at: rewrite(at, "text", without(TEXT, "ln_final.bias"), **WARM),
            r"tiny_text.npz does not match TIPSv2's text tower: keys 1 missing \(ln_final.bias",
        ),
        (lambda at: rewrite(at, "text", TEXT), "KeyError: 'temperature_init_value'"),
        (lambda at: rewrite(at, "text", TEXT, temperature=np.float32(-1)), "a scale of -1: take"),
        (lambda at: rewrite(at, "text", TEXT, temperature=np.zeros(1)), "ZeroDivisionError"),
        (lambda at: rewrite(at, "text", text(9, width=16), **WARM), "a text tower of width 16"),
        (lambda at: crowd(at, 0), "0 heads of a width of 32"),
        (lambda at: crowd(at, 5), "5 heads of a width of 32"),
        (lambda at: page(at, text=TEXT), "KeyError: 'norm.weight'"),
        (lambda at: prepare(at, do_normalize=True), "pixels are bilinear or normalised"),
        (lambda at: prepare(at, resample=3), "pixels are bicubic"),
        (lambda at: prepare(at, size={"height": 224, "width": 448}), "expected 2 .* and 224"),
        (lambda at: prepare(at, size={"shortest_edge": 448}), "KeyError: 'height'"),
        (lambda at: prepare(at, size=448), "TypeError"),
        (lambda at: prepare(at, size={"height": 10**6, "width": 10**6}), "a frame of 1000000"),
        (lambda at: write_tokens(at, [*WORDS, "a" * 257]), "a piece of 257 characters"),
        (
            lambda at: rewrite(
                at, "vision", vision() | {f"blocks.{n}.x": np.zeros(1) for n in range(4000)}
            ),
            "states depth 4000, expected up to 256 layers",
        ),
        (
            lambda at: rewrite(at, "text", TEXT | {"empty": np.zeros((9, 0), np.float32)}, **WARM),
            "empty has no numbers",
        ),
    ],
)
def test_damaged_and_partial_files_are_refused(folder: Path, damage, message: str):
    damage(folder)
    assert is_here(folder)
    with pytest.raises(CheckpointError, match=message):
        load_all(folder)
