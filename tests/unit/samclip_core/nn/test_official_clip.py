"""open_clip models from their published files."""

import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from samclip_core.config import VIT_B, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.nn.clip_model import build_model, describe, pixel_statistics
from samclip_core.nn.official_clip import OfficialClip, load_official_clip
from samclip_core.nn.transformers_clip import describe_config
from tests.clip_models import SIGLIP, add_small_clip, named, write_siglip
from tests.official import clip, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("hub") / "siglip")


@pytest.fixture(scope="module")
def siglip(folder: Path) -> OfficialClip:
    return load_official_clip(f"local-dir:{folder}")


def test_a_folder_of_the_hub_describes_its_model(siglip: OfficialClip):
    config = siglip.describe_in(VIT_B)
    assert config.text == TextConfig(
        tower="open_clip", model="siglip", open_clip=SIGLIP, filter="bicubic"
    )
    assert config.text_dim == 64
    assert config.logit_scale == pytest.approx(siglip.model.logit_scale.exp().item())
    assert type(config).from_json(config.to_json()) == config
    mean_311, std_311 = pixel_statistics(config.text)
    assert mean_311.flatten().tolist() == [127.5] * 3
    assert std_311.flatten().tolist() == [127.5, 63.75, 127.5]


def test_its_tokens_end_and_are_padded_as_published(siglip: OfficialClip):
    ids_TN = siglip.text_encoder().tokenizer(["A_photo of: a DOG!", "cat " * 40])
    assert ids_TN.tolist() == [[3, 4, 5, 3, 6, 2] + [1] * 10, [7] * 15 + [2]]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_tokenizer_is_named_with_its_place(tmp_path: Path, file: str):
    folder = write_siglip(tmp_path / "siglip")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=r"download tokenizer\.json .*samclip-test-siglip"):
        load_official_clip(f"local-dir:{folder}")


def test_a_tokenizer_with_other_options_is_refused(tmp_path: Path):
    folder = write_siglip(tmp_path / "siglip")
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"strip_sep_token": True}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="strip_sep_token"):
        load_official_clip(f"local-dir:{folder}")


SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"model_type": "clip"}, "ViT-B-32-quickgelu"),
        ({"model_type": "siglip", "text_config": {"vocab_size": 256000}}, "ViT-B-16-SigLIP2"),
        (
            {
                "model_type": "siglip",
                "text_config": SO400M | {"vocab_size": 256000},
                "vision_config": SO400M | {"image_size": 384},
            },
            "ViT-SO400M-16-SigLIP2-384",
        ),
    ],
)
def test_a_config_of_transformers_describes_an_architecture_of_open_clip(config, model: str):
    found = describe_config(config, {}, "folder")
    with torch.device("meta"):
        ours = build_model(TextConfig(tower="open_clip", model="folder", open_clip=found))
        theirs = build_model(named(model))
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    activations = {type(layer) for layer in ours.modules()} & {QuickGELU, nn.GELU}
    assert activations == {type(layer) for layer in theirs.modules()} & {QuickGELU, nn.GELU}


def page(**of_open_clip: object) -> dict[str, object]:
    """Return the files of a page of open_clip."""
    return {"open_clip_config.json": SIGLIP | of_open_clip}


def prepared(processor: object) -> dict[str, object]:
    """Return the files of a page of transformers that prepares pictures in this way."""
    return {"config.json": {"model_type": "clip"}, "preprocessor_config.json": processor}


OTHER_FILTER = "expected bilinear or bicubic, and shortest or squash"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no usable open_clip_config\.json"),
        (page(), "has no weights: expected open_clip_model"),
        (page(preprocess_cfg={"interpolation": "lanczos"}), OTHER_FILTER),
        (page(preprocess_cfg={"resize_mode": "longest"}), OTHER_FILTER),
        ({"config.json": {"model_type": "siglip2"}}, "siglip2.*openai/clip-vit-base-patch32"),
        ({"config.json": {}}, "None, expected clip or siglip"),
        (
            {"config.json": {"model_type": "siglip", "vision_config": {"hidden_size": 9}}},
            "width 9, patches of 16",
        ),
        (prepared({"resample": 0}), "resample 0, .* expected 2 .bilinear. or 3 .bicubic."),
        (prepared({"resample": "bicubic"}), "resample bicubic"),
        (prepared({"do_rescale": False}), "the factor 0 .* expected .* 1/255"),
        (prepared({"rescale_factor": 1 / 127.5}), r"the factor 0\.0078"),
        (prepared({"crop_size": {"height": 336, "width": 336}}), "size .'height': 336.* and 224"),
        (prepared({"size": {"height": 224, "width": 448}}), "size .'height': 224, 'width': 448."),
        (prepared({"size": 256, "crop_size": 224, "do_center_crop": False}), "size 256"),
        (prepared({"size": []}), "no usable open_clip_config.json or config.json"),
        (prepared([1]), "no usable open_clip_config.json or config.json"),
    ],
)
def test_a_folder_of_another_model_or_with_other_pictures_is_refused(
    tmp_path: Path, files: dict[str, object], message: str
):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_official_clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"resample": 3, "size": 224, "crop_size": 224, "do_center_crop": True},  # openai's own
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
        {"do_center_crop": None, "do_convert_rgb": None, "size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 256}, "crop_size": 224},
    ],
)
def test_pages_of_transformers_prepare_pictures_bicubically_unless_they_say_otherwise(processor):
    found = describe_config({"model_type": "clip"}, processor, "folder")["preprocess_cfg"]
    mean = [*open_clip.OPENAI_DATASET_MEAN]
    assert found == {
        "mean": mean,
        "std": [*open_clip.OPENAI_DATASET_STD],
        "interpolation": "bicubic",
    }
    plain = processor | {"do_normalize": False, "image_mean": [0.5] * 3, "resample": 2}
    found = describe_config({"model_type": "clip"}, plain, "folder")["preprocess_cfg"]
    assert found == {"mean": [0] * 3, "std": [1] * 3, "interpolation": "bilinear"}


@pytest.mark.parametrize("given", ["ViT-B-32", "ViT-B-32:", ":weights.pt"])
def test_another_form_is_refused(given: str):
    with pytest.raises(CheckpointError, match="expected MODEL:FILE"):
        load_official_clip(given)


def test_a_tag_says_how_pixels_are_prepared():
    for name, tag, mean, std, interpolation in [
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5, 0.5, "bicubic"),
        ("ViT-B-16-SigLIP2", "webli", 0.5, 0.5, "bicubic"),
        ("MobileCLIP-S1", "datacompdr", 0.0, 1.0, "bilinear"),
    ]:
        expected = {"mean": [mean] * 3, "std": [std] * 3, "interpolation": interpolation}
        assert describe(name, tag)["preprocess_cfg"] == expected


@pytest.mark.parametrize(
    ("model", "warnings"),
    [
        ("ViT-B-16-SigLIP2", 0),
        ("ViT-B-32", 1),  # OpenAI's weights need another activation
        ("ViT-L-14", 2),  # and one tag has another mean
        ("RN50", 1),  # no published weights have its activation
        ("ViT-L-14-quickgelu", 0),
    ],
)
def test_what_a_missing_tag_leaves_open_is_said_with_advice_that_is_accepted(
    caplog: pytest.LogCaptureFixture, model: str, warnings: int
):
    with pytest.raises(CheckpointError, match=r"no file none\.pt"):
        load_official_clip(f"{model}:none.pt")
    advice = [re.search(r"(\S+)/(\S+):FILE", said) for said in caplog.messages]
    assert len(advice) == warnings
    for found in advice:
        describe(*found.groups())
    assert ("another activation: for these" in caplog.text) == (warnings > 0)


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("ViT-Z-1", "", "no architecture"),
        ("ViT-B-32", "mine", r"no weights 'mine' of ViT-B-32: give one of openai"),
        ("ViT-L-14", "openai", "use ViT-L-14-quickgelu"),
        ("ViT-L-14-quickgelu", "datacomp_xl_s13b_b90k", r"no weights .* of ViT-L-14-quickgelu"),
    ],
)
def test_a_model_or_tag_that_does_not_fit_is_refused(model: str, tag: str, message: str):
    with pytest.raises(CheckpointError, match=message):
        describe(model, tag)


@pytest.mark.parametrize("model", ["coca_ViT-B-32", "xlm-roberta-base-ViT-B-32"])
def test_a_text_tower_of_another_library_is_refused(model: str):
    with pytest.raises(CheckpointError, match="captioning model, or"):
        build_model(named(model))


@pytest.mark.parametrize(
    "model", ["ViT-L-14-quickgelu", "ViT-B-16-SigLIP2", "MobileCLIP-S1", "MobileCLIP-B"]
)
def test_published_architectures_have_open_clips_tensors(model: str):
    with torch.device("meta"):
        ours, theirs = build_model(named(model)), open_clip.create_model(model, device="meta")
        text = build_model(named(model), images=False)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert text.state_dict().keys() == {key for key in shapes if not key.startswith("visual.")}
    activations = [{type(m) for m in net.modules()} for net in (ours, theirs)]
    assert activations[0] == activations[1]


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    file = write(clip(add_small_clip(tmp_path)), tmp_path, "clip.bin")
    with pytest.raises(CheckpointError, match="does not match open_clip's ViT-S-32-alt"):
        load_official_clip(f"ViT-S-32-alt:{file}")
