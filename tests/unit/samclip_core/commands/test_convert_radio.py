"""Conversion of a RADIO with or without masks; files that do not fit each other are refused."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.data import chelsea

from samclip_core.commands.convert import main
from samclip_core.commands.convert_radio import convert_radio
from samclip_core.commands.export import export
from samclip_core.commands.info import describe
from samclip_core.errors import SamClipError
from samclip_core.families.mobile_sam.network import TinyViTEncoder
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.model import SamClip
from samclip_core.nn.network import load_net
from samclip_core.nn.official_sam import read_sam


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
        (
            lambda sam: sam.update({"image_encoder.neck.0.weight": torch.zeros(10**9, 40, 0, 0)}),
            *("siglip2-g", {}, "no network has the sizes"),
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


@pytest.fixture(scope="module")
def v4(radio_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small RADIO without its adaptor for SAM, as a C-RADIOv4 is published."""
    folder = tmp_path_factory.mktemp("v4")
    state = read_state(radio_tiny / "model.safetensors")
    kept = {key: value for key, value in state.items() if ".adaptors.sam." not in key}
    save_file(kept, folder / "model.safetensors")
    shutil.copy(radio_tiny / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def without_masks(v4: Path, radio_tiny: Path) -> Path:
    out, clip = v4 / "out", f"local-dir:{radio_tiny}/text-siglip2-g"
    given = ["--radio", v4, "--sides", 384, 1024, "--clip", clip, "--out", out]
    assert main([*map(str, given)]) == 0
    return out


def test_without_sam_there_are_no_masks(without_masks):
    config = checkpoint.read_config(without_masks)
    assert (config.masks, config.embed_dim, config.sizes) == (False, 0, (384,))
    keys = load_net(without_masks).state_dict()
    assert {key.split(".")[0] for key in keys} == {"image_encoder", "clip_head"}
    assert not [key for key in keys if ".sam." in key or ".neck." in key]
    lineage = json.loads(checkpoint.read_file(without_masks, checkpoint.LINEAGE))
    assert lineage["sources"].keys() == {"radio", "clip"}
    assert (
        "no mask decoder: no masks" in checkpoint.read_file(without_masks, checkpoint.CARD).decode()
    )
    assert describe(without_masks)["masks"].startswith("none: ")


@pytest.mark.slow
def test_words_are_those_of_the_same_radio_with_masks(without_masks, converted):
    """By PyTorch, and by graphs within their rounding."""
    image_HW3 = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    theirs = SamClip.load(converted, engine="torch").encode(image_HW3, 384)
    ours = SamClip.load(without_masks, engine="torch").encode(image_HW3)
    assert ours.sam_Dhw is None
    np.testing.assert_allclose(ours.clip_pooled_D, theirs.clip_pooled_D, atol=1e-5)
    np.testing.assert_allclose(ours.clip_dense_Dhw, theirs.clip_dense_Dhw, atol=1e-5)
    export(without_masks)
    assert {*checkpoint.graphs(without_masks)} >= {"image_encoder.onnx", "text_encoder.onnx"}
    assert "mask_decoder.onnx" not in checkpoint.graphs(without_masks)
    compiled = SamClip.load(without_masks, dtype="float32", engine="openvino").encode(image_HW3)
    assert compiled.sam_Dhw is None
    for name in ("clip_pooled_D", "clip_dense_Dhw"):
        np.testing.assert_allclose(getattr(compiled, name), getattr(ours, name), atol=2e-3)


def test_a_v4_with_sam_is_refused_and_a_pair_needs_it(v4, radio_tiny, tmp_path, capsys):
    sam, clip = radio_tiny / "sam.pth", f"local-dir:{radio_tiny}/text-siglip2-g"
    with pytest.raises(SamClipError, match=r"no adaptor for SAM.*: leave out --sam"):
        convert_radio(v4, sam, clip, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["--clip", clip, "--out", str(tmp_path / "out")])
    assert "only a checkpoint of --radio can be without masks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_v4_has_the_masks_of_a_mobile_sam(v4, radio_tiny, mobile_sam, tmp_path):
    sam, clip = mobile_sam / "mobile_sam.pth", f"local-dir:{radio_tiny}/text-siglip2-g"
    for out, given in (("words", None), ("both", sam)):
        convert_radio(v4, given, clip, tmp_path / out, sides=(128, 256))
    image_HW3 = cv2.resize(chelsea(), (200, 150), interpolation=cv2.INTER_AREA)
    words, both = (SamClip.load(tmp_path / name, engine="torch") for name in ("words", "both"))
    assert both.config.masks
    assert both.config.sizes == (256, 128)
    assert "- MobileSAM, `mobile_sam.pth`: Apache-2.0" in (tmp_path / "both/README.md").read_text()
    small, theirs = both.encode(image_HW3, 128), words.encode(image_HW3)
    np.testing.assert_allclose(small.clip_dense_Dhw, theirs.clip_dense_Dhw, atol=1e-5)
    np.testing.assert_allclose(small.clip_pooled_D, theirs.clip_pooled_D, atol=1e-5)
    large = both.encode(image_HW3)  # RADIO reads it at 128 pixels
    assert large.clip_pooled_D @ theirs.clip_pooled_D > 0.999
    prepared = both.prepare(image_HW3)
    pixels_13SS = torch.from_numpy(prepared.pixels_3SS)[None].float()
    encoder = TinyViTEncoder().eval()
    official = {key.removeprefix("image_encoder."): value for key, value in read_sam(sam).items()}
    encoder.load_state_dict({key: official[key] for key in encoder.state_dict()})
    with torch.inference_mode():
        sam_1Dhw = encoder(pixels_13SS, torch.tensor([[192, 256]])).sam_BDhw
    np.testing.assert_allclose(large.sam_Dhw, sam_1Dhw[0].numpy(), atol=1e-4)
    export(tmp_path / "both")
    compiled = SamClip.load(tmp_path / "both", dtype="float32", engine="openvino")
    for name, value in vars(compiled.encode(image_HW3)).items():
        if isinstance(value, np.ndarray):
            expected = getattr(large, name)
            np.testing.assert_allclose(value, expected, atol=2e-3 * np.abs(expected).max())


def test_frames_that_do_not_fit_beside_a_mobile_sam_are_refused(
    v4, radio_tiny, mobile_sam, tmp_path
):
    files = v4, mobile_sam / "mobile_sam.pth", f"local-dir:{radio_tiny}/text-siglip2-g"
    with pytest.raises(SamClipError, match="1024 pixels are no multiple of 384"):
        convert_radio(*files, tmp_path / "out", sides=(384, 1024))


V1 = {"fc1.weight": (64, 48), "norm.weight": (64,), "fc2.weight": (24, 64)}
ATTENTION = {"blocks.0.attn.qkv.weight": (144, 48), "mlp.fc1.weight": (64, 48)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (V1, "no adaptors.siglip2-g.head_mlp.final.2.weight: .*version v2"),
        (ATTENTION, "no adaptors.siglip2-g.head_mlp.fc1.weight: .*version v2"),
        ({"pre_norm.0.weight": (48,)}, r"adaptors of version v2: keys 1 unexpected \(.*pre_norm"),
    ],
)
def test_adaptors_of_other_versions_are_refused(v4, radio_tiny, tmp_path, layers, message):
    prefix = "radio_model.adaptors.siglip2-g.head_mlp."
    state = read_state(v4 / "model.safetensors")
    if "pre_norm.0.weight" not in layers:
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
    state |= {f"{prefix}{name}": torch.zeros(shape) for name, shape in layers.items()}
    save_file(state, tmp_path / "model.safetensors")
    shutil.copy(v4 / "config.json", tmp_path)
    with pytest.raises(SamClipError, match=message):
        convert_radio(tmp_path, None, f"local-dir:{radio_tiny}/text-siglip2-g", tmp_path / "out")
