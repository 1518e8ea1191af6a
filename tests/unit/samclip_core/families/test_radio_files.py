"""Both layouts of RADIO's files are read alike; another architecture is refused."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from samclip_core.errors import CheckpointError
from samclip_core.families.radio.files import read_radio
from samclip_core.io.official import read_state

Edit = Callable[[dict[str, Any]], object]
BLOCK = "radio_model.model.blocks.0."


@pytest.mark.parametrize("words", ["clip", "siglip2-g"])
def test_both_layouts_give_the_same(radio_tiny, words):
    hub, torch_hub = read_radio(radio_tiny), read_radio(radio_tiny / "torchhub.pth.tar")
    assert hub.config(words) == torch_hub.config(words)
    ours, theirs = hub.parts(words), torch_hub.parts(words)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert {key.split(".")[0] for key in ours} == {"image_encoder", "clip_head"}


def test_adaptors_with_numbers_are_those_of_the_teachers_in_turn(radio_tiny, tmp_path):
    """Adaptor 1 is not 10, and the averaged weights are preferred."""
    stored = load(radio_tiny)
    teachers = vars(stored["args"])["teachers"]
    names = [teacher["name"] for teacher in teachers] + [f"spare-{n}" for n in range(4, 11)]
    teachers += [{"name": name} for name in [names[0], *names[4:]]]
    numbered = {}
    for key, value in stored["state_dict"].items():
        first, name, rest = [*key.split(".", 2), ""][:3]
        head = first in ("_heads", "_feature_projections")
        numbered[f"{first}.{names.index(name)}.{rest}" if head else key] = value
    numbered |= {f"_heads.10.{n}": torch.zeros(1) for n in ("fc1.weight", "blocks.7.0.weight")}
    torch.save(
        {**stored, "state_dict_ema": numbered, "state_dict": {"base_model": torch.zeros(1)}},
        tmp_path / "it.pth.tar",
    )
    found, expected = read_radio(tmp_path / "it.pth.tar"), read_radio(radio_tiny)
    assert found.config("siglip2-g") == expected.config("siglip2-g")
    assert found.parts("siglip2-g").keys() == expected.parts("siglip2-g").keys()


def load(radio_tiny: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return dict(torch.load(radio_tiny / "torchhub.pth.tar", weights_only=True))


def without(word: str) -> Edit:
    return lambda state: [state.pop(key) for key in list(state) if word in key]


def renamed(old: str, new: str) -> Edit:
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(".adaptors."), r"has no adaptors.*the hub may lack them: .*\.pth\.tar"),
        (without(".siglip2-g."), "no adaptor 'siglip2-g' for words: .*--words: clip, dino_v2"),
        (
            without(".sam."),
            r"no adaptor for SAM.*\(it has clip, dino_v2.*: leave out .*, give mobile_sam.*RADIOv3",
        ),
        (without(".final.2."), r"has no adaptors.*final.2.weight: .*adaptors of version v2"),
        (
            renamed(f"{BLOCK}attn.qkv.weight", f"{BLOCK}attn.qkv.parametrizations.weight.original"),
            "spectral reparametrisation that is not folded",
        ),
        (
            lambda state: state.update(
                {"radio_model.model.patch_generator.embedder.weight": torch.zeros(48, 588)}
            ),
            "patches of 14 pixels is not supported",
        ),
        (
            lambda state: state.update(
                {f"radio_model.model.blocks.{n}.x": torch.zeros(1) for n in range(4000)}
            ),
            "states depth 4000, expected up to 256",
        ),
    ],
)
def test_a_file_that_cannot_be_converted_is_refused(radio_tiny, tmp_path, edit: Edit, message):
    state = read_state(radio_tiny / "model.safetensors")
    edit(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((radio_tiny / "config.json").read_text())
    with pytest.raises(CheckpointError, match=message):
        read_radio(tmp_path).config("siglip2-g")


def test_a_trunk_of_unknown_heads_is_refused(radio_tiny, tmp_path):
    stored = load(radio_tiny)
    vars(stored["args"])["model_kwargs"] = None
    torch.save(stored, tmp_path / "it.pth.tar")
    with pytest.raises(CheckpointError, match=r"vit_tiny_patch16_224 of width 48 .* not supported"):
        read_radio(tmp_path / "it.pth.tar").config("siglip2-g")


def test_the_normaliser_is_a_linear_layer(radio_tiny):
    """It subtracts its mean, and multiplies by its transposed matrix."""
    file, random = read_radio(radio_tiny), torch.Generator().manual_seed(0)
    mean_D, tx_DD = torch.rand(48, generator=random), torch.rand(48, 48, generator=random)
    state = {**file.state, "feature_normalizer.mean": mean_D, "feature_normalizer.tx": tx_DD}
    found = replace(file, state=state)
    assert found.config("clip").normalised
    x_ND, parts = torch.rand(5, 48, generator=random), found.parts("clip")
    weight_DD, bias_D = (parts[f"image_encoder.normaliser.{part}"] for part in ("weight", "bias"))
    torch.testing.assert_close(F.linear(x_ND, weight_DD, bias_D), (x_ND - mean_D) @ tx_DD.T)


def test_a_file_of_another_program_is_refused(tmp_path):
    torch.save({"args": argparse.Namespace(path=tmp_path), "state_dict": {}}, tmp_path / "more")
    torch.save({"state_dict": {}}, tmp_path / "state")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text(json.dumps({"model_type": "vit"}))
    for name, message in {
        "more": "other objects, which may run code and are never loaded",
        "state": r"is no RADIO \('args'\): expected",
        "hub": r"is no RADIO \('args'\): expected",
        "none": "no file .*none",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read_radio(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("feature_normalizer.tx", (3, 3)),
        ("feature_normalizer.mean", (5,)),
        ("model.patch_generator.pos_embed", ()),
        ("model.patch_generator.embedder.weight", (3,)),
    ],
)
def test_tensors_of_other_shapes_are_refused(radio_tiny, key, shape):
    file = read_radio(radio_tiny)
    state = {"feature_normalizer.tx": torch.zeros(3, 3), **file.state, key: torch.zeros(shape)}
    made = replace(file, state=state)
    with pytest.raises(CheckpointError, match=r"download the file again|not supported"):
        _ = made.config("clip", masks=False), made.parts("clip", masks=False)
