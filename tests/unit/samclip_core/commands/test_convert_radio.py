import json

import pytest
import torch

from samclip_core.commands.convert import main
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.commands.info import describe
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.nn.network import load_net


@pytest.fixture(scope="module")
def converted(radio_tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "small"
    arguments = ["--radio", radio_tiny, "--sam", radio_tiny / "sam.pth", "--sides", 384, 1024]
    clip = f"local-dir:{radio_tiny}/text-siglip2-g"
    assert main([*map(str, arguments), "--clip", clip, "--out", str(out)]) == 0
    return out


def test_config_has_a_side_per_task_and_radios_scale(converted):
    config = checkpoint.read_config(converted)
    assert (config.kind, config.name, config.text_dim) == ("radio", "small", 24)
    assert (config.sizes, config.logit_scale) == ((1024, 384), 100)
    assert describe(converted)["config"]["radio"]["class_token"] == 1


def test_only_the_parts_that_are_used_are_kept(converted, radio_tiny):
    stored, radio = load_net(converted).state_dict(), read_state(radio_tiny / "model.safetensors")
    for ours, theirs in {"image_encoder.blocks.1": "model.blocks.1",
                         "image_encoder.sam": "adaptors.sam.feat_mlp",
                         "clip_head.words": "adaptors.siglip2-g.head_mlp"}.items():  # fmt: skip
        values = [value for key, value in radio.items() if f".{theirs}." in key]
        kept = [value for key, value in stored.items() if key.startswith(f"{ours}.")]
        assert len(kept) == len(values) > 0
        assert {value.sum().item() for value in kept} == {value.sum().item() for value in values}
    sam = read_state(radio_tiny / "sam.pth")
    assert all(torch.equal(stored[key], value.float()) for key, value in sam.items())
    assert not [key for key in stored if "dino" in key or "clip." in key]


def test_lineage_and_card_name_the_sources_and_their_licences(converted, radio_tiny):
    sources = json.loads(checkpoint.read_file(converted, checkpoint.LINEAGE))["sources"]
    files = {"radio": "model.safetensors", "sam": "sam.pth"}
    for name, file in files.items():
        assert sources[name]["file"] == file
        assert sources[name]["sha256"] == checkpoint.sha256(radio_tiny / file)
    card = checkpoint.read_file(converted, checkpoint.CARD).decode()
    for licence in ("NVIDIA Open Model License", "`sam.pth`: Apache-2.0", "SigLIP2-384, Apache"):
        assert licence in card


@pytest.mark.parametrize(
    ("edit", "text", "sizes", "message"),
    [
        (lambda sam: sam.clear(), "siglip2-g", {}, "no image_encoder.neck: .*sam_vit_h_4b8939"),
        (
            lambda sam: sam.update({"image_encoder.neck.0.weight": torch.zeros(256, 768, 1, 1)}),
            *("siglip2-g", {}, "SAM of width 768, and RADIO's adaptor gives 40: use SAM's ViT-H"),
        ),
        (
            lambda sam: sam.pop("mask_decoder.iou_token.weight"),
            *("siglip2-g", {}, r"with sam.pth does not match .*missing \(mask_decoder.iou_token"),
        ),
        (None, "clip", {}, "text-clip has width 32, and .*siglip2-g gives 24: .*SigLIP 2 giant"),
        (None, "siglip2-g", {"sides": (500, 1024)}, "frame of 500 pixels: .*multiple of 16"),
        (None, "siglip2-g", {"sides": (512, 0)}, "frame of 0 pixels"),
    ],
)
def test_files_that_do_not_fit_are_refused(radio_tiny, tmp_path, edit, text, sizes, message):
    sam = radio_tiny / "sam.pth"
    if edit:
        state = read_state(sam)
        edit(state)
        sam = tmp_path / "sam.pth"
        torch.save(state, sam)
    with pytest.raises(SamClipError, match=message):
        convert_radio(
            radio_tiny, sam, f"local-dir:{radio_tiny}/text-{text}", tmp_path / "out", **sizes
        )
    assert not (tmp_path / "out").exists()
