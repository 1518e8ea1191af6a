"""Models in transformers' layout against transformers' own classes, with seeded random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import _create_vision_transformer
from torch import nn
from torch.nn import functional as F

from samclip_core.commands.convert import convert
from samclip_core.model import SamClip
from samclip_core.nn import transformers_clip
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.official_sam import read_sam
from samclip_core.types import Prompt
from tests.clip_models import write_tokenizer
from tests.official import small_sam, write
from tests.weights import seeded

transformers = pytest.importorskip("transformers")
SIDE, WIDTH, TEXT_WIDTH, CONTEXT = 64, 96, 64, 16
TEXT = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 16,
}


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, activation: str) -> tuple[nn.Module, Path]:
    config = transformers.CLIPConfig(
        text_config=TEXT | {"hidden_act": activation},
        vision_config=VISION | {"hidden_act": activation},
        projection_dim=48,
    )
    model = seeded(lambda: transformers.CLIPModel(config), 0)
    return model, save(model, folder)


def siglip_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Path]:
    """Write a small SigLIP, whose image tower is known to timm during the test."""

    def vit_tiny_patch16_siglip_64(pretrained: bool = False, **options: object) -> nn.Module:
        sizes = {"img_size": SIDE, "embed_dim": WIDTH, "depth": 3, "num_heads": 3}
        like = "vit_base_patch16_siglip_224"
        return _create_vision_transformer(like, class_token=False, **sizes, **options)

    entries = timm.models._registry._model_entrypoints
    monkeypatch.setitem(entries, "vit_tiny_patch16_siglip_64", vit_tiny_patch16_siglip_64)
    monkeypatch.setitem(transformers_clip.SIGLIP_SIZES, WIDTH, "tiny")
    text = {"vocab_size": 16, "max_position_embeddings": CONTEXT, "projection_size": WIDTH}
    config = transformers.SiglipConfig(text_config=TEXT | text, vision_config=VISION)
    model = seeded(lambda: transformers.SiglipModel(config), 0)
    (save(model, folder) / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})
    )
    write_tokenizer(folder)
    return model, folder


def assert_same_features(theirs: nn.Module, folder: Path) -> None:
    """Compare embeddings of images and token ids, and the scale of their products."""
    ours = load_official_clip(f"local-dir:{folder}")
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=random)
    ids = ours.text_encoder().tokenizer(["a photo of a dog", "a cat"])
    ids_TN = torch.from_numpy(ids)
    with torch.inference_mode():
        found = ours.model.encode_image(pixels), ours.model.encode_text(ids_TN)
        expected = (
            theirs.get_image_features(pixel_values=pixels).pooler_output,
            theirs.get_text_features(input_ids=ids_TN).pooler_output,
        )
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert F.cosine_similarity(one, other).min() >= 0.99999
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)  # timm has the exact GELU
    assert ours.model.logit_scale.exp().item() == pytest.approx(theirs.logit_scale.exp().item())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(tmp_path: Path, activation: str) -> None:
    model, folder = clip_folder(tmp_path / "clip", activation)
    assert_same_features(model, folder)


def test_siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = siglip_folder(tmp_path / "siglip", monkeypatch)
    assert_same_features(model, folder)
    sam = write(small_sam(128, 32), tmp_path, "sam.pth")
    convert(sam, f"local-dir:{folder}", tmp_path / "pair")
    pair = SamClip.load(tmp_path / "pair")
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert pair.classify(image, ["a dog", "a cat"])
    assert pair.embed_image(image).shape == (WIDTH,)


def test_sam(tmp_path: Path) -> None:
    """The same weights, saved by transformers, are read as segment_anything's."""
    official = write(small_sam(), tmp_path, "sam.pth")
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 256}
    config = transformers.SamConfig(
        vision_config=sizes | {"window_size": 4, "global_attn_indexes": [1, 3]}
    )
    model = seeded(lambda: transformers.SamModel(config), 0)
    sharpen(model)
    save(model, tmp_path / "sam")
    _, clip = clip_folder(tmp_path / "clip", "gelu")
    convert(tmp_path / "sam", f"local-dir:{clip}", tmp_path / "pair")
    assert read_sam(tmp_path / "sam/model.safetensors").keys() == read_sam(official).keys()
    pair = SamClip.load(tmp_path / "pair")
    image = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), np.uint8)
    point = (300.0, 200.0)
    (answer,) = pair.segment(image, [Prompt(points=(point,))], multimask=True)
    processed = transformers.SamImageProcessor()(image, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(
            pixel_values=processed["pixel_values"], input_points=torch.tensor([[[point]]])
        )
    logits_Mhw, iou_M = theirs.pred_masks[0, 0].numpy(), theirs.iou_scores[0, 0].numpy()
    best_first = np.argsort(-iou_M, kind="stable")
    np.testing.assert_allclose(answer.predicted_iou_M, iou_M[best_first], atol=1e-4)
    np.testing.assert_allclose(
        answer.logits_Mhw, logits_Mhw[best_first], atol=1e-3 * np.abs(logits_Mhw).max()
    )


def sharpen(model: nn.Module) -> None:
    """Scale mask logits as ``tests.official.sharpened`` does."""
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(50)
