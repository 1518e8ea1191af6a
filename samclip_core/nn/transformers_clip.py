"""CLIP and SigLIP as the transformers library publishes them, in open_clip's terms."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor

from samclip_core import guarded
from samclip_core.errors import CheckpointError
from samclip_core.io.official import renamed

_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
SIGLIP_SIZES = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}
"""timm's names of SigLIP's image towers, by their widths."""
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_COMMON = _BASE | {"num_hidden_layers": 12, "image_size": 224}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_LEFT_OUT: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text": _CLIP_TEXT | {"vocab_size": 49408, "max_position_embeddings": 77},
        "vision": {"patch_size": 32, "hidden_act": "quick_gelu"},
    },
    "siglip": {
        "text": {"vocab_size": 32000, "max_position_embeddings": 64},
        "vision": {"patch_size": 16},
    },
}
"""Values that a config.json of each model_type may leave out, besides ``_COMMON``."""

_BLOCKS = (
    (r".*\.position_ids$", ""),
    (r"\.self_attn\.qkv\.", ".attn.in_proj_"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TEXT = (
    *_BLOCKS,
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight", "text_projection"),  # of CLIP, without a bias
    (r"^text_model\.head\.", "text_projection."),
)
_CLIP_VISION = (
    *_BLOCKS,
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight", "visual.proj"),
)
_SIGLIP_VISION = (
    (r".*\.position_ids$", ""),
    (r"\.embeddings\.patch_embedding\.", ".patch_embed.proj."),
    (r"\.embeddings\.position_embedding\.weight", ".pos_embed"),
    (r"\.post_layernorm\.", ".norm."),
    (r"\.head\.probe", ".attn_pool.latent"),
    (r"\.head\.attention\.in_proj_", ".attn_pool.qkv."),
    (r"\.head\.attention\.out_proj\.", ".attn_pool.proj."),
    (r"\.head\.layernorm\.", ".attn_pool.norm."),
    (r"\.head\.mlp\.", ".attn_pool.mlp."),
    (r"\.encoder\.layers\.", ".blocks."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"^vision_model\.", "visual.trunk."),
)


def describe_config(
    config: Mapping[str, Any], processor: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return open_clip's description of a model from the contents of its folder's JSON files.

    ``name`` is the folder's, for a tokenizer and for errors. Raises CheckpointError if the model is
    neither a CLIP nor a SigLIP of a known size.
    """
    kind = config.get("model_type")
    if kind not in _LEFT_OUT:
        raise CheckpointError(
            f"{name} has the model_type {kind!r}, expected clip or siglip (a SigLIP of flexible "
            "resolution, siglip2, is not supported, and other families only as the words of a "
            "pair): use for example openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"
        )
    text, vision = (
        _COMMON | _LEFT_OUT[kind][tower] | (config.get(f"{tower}_config") or {})
        for tower in ("text", "vision")
    )
    text_cfg = _sizes(text) | {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "heads": text["num_attention_heads"],
    }
    if kind == "clip":
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        model_cfg = {
            "embed_dim": config.get("projection_dim", 512),
            "quick_gelu": vision["hidden_act"] == "quick_gelu",
            "vision_cfg": _sizes(vision)
            | {
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "patch_size": vision["patch_size"],
                "image_size": vision["image_size"],
            },
            "text_cfg": text_cfg,
        }
    else:
        mean = std = (0.5, 0.5, 0.5)
        model_cfg = _of_siglip(vision, text_cfg, name)
    given = {key: value for key, value in processor.items() if value is not None}
    if not given.get("do_normalize", True):
        mean, std, given = (0, 0, 0), (1, 1, 1), given | {"image_mean": None, "image_std": None}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": [*(given.get("image_mean") or mean)],
            "std": [*(given.get("image_std") or std)],
            "interpolation": prepared_filter(given, vision["image_size"], name),
        },
    }


def read_processor(folder: Path) -> dict[str, Any]:
    """Return how transformers prepares pixels; version 5 keeps it in a file with other parts."""
    for file, part in (
        ("preprocessor_config.json", ""),
        ("processor_config.json", "image_processor"),
    ):
        if (folder / file).is_file():
            content = guarded.read_json(folder / file)
            return dict(content.get(part) or {} if part else content)
    return {}


def prepared_filter(processor: Mapping[str, Any], side: int, name: str) -> str:
    """Return the filter that resizes pictures to ``side``, and check how else they are prepared.

    Raises CheckpointError if pixels have other values than 0..1 before they are normalised, or
    pictures another size than the model.
    """
    filter = processor.get("resample", Image.Resampling.BICUBIC)
    scale = processor.get("do_rescale", True) * processor.get("rescale_factor", 1 / 255)
    cropped = processor.get("do_center_crop", "crop_size" in processor)
    size = processor.get("crop_size" if cropped else "size", side)
    sides = {*size.values()} if isinstance(size, dict) else {size}
    if filter not in _FILTERS or not math.isclose(255 * scale, 1) or sides != {side}:
        raise CheckpointError(
            f"{name} prepares pictures with resample {filter}, the factor {scale:.5g} and the size "
            f"{size}: expected 2 (bilinear) or 3 (bicubic), 1/255 and {side}"
        )
    return _FILTERS[filter]


def _sizes(tower: Mapping[str, Any]) -> dict[str, Any]:
    width = tower["hidden_size"]
    ratio = (tower["intermediate_size"] + 0.5) / width  # open_clip rounds their product down
    return {"layers": tower["num_hidden_layers"], "width": width, "mlp_ratio": ratio}


def _of_siglip(vision: Mapping[str, Any], text_cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    width, patch, side = (vision[key] for key in ("hidden_size", "patch_size", "image_size"))
    tower = f"vit_{SIGLIP_SIZES.get(width, width)}_patch{patch}_siglip_{side}"
    if not timm.is_model(tower):
        raise CheckpointError(
            f"the image tower of {name} has width {width}, patches of {patch} and pictures of "
            f"{side} pixels, as no published SigLIP: use google/siglip2-base-patch16-224 or another"
        )
    like = open_clip.get_model_config("ViT-B-16-SigLIP2")
    return {
        **like,
        "embed_dim": width,
        "vision_cfg": like["vision_cfg"] | {"image_size": side, "timm_model_name": tower},
        "text_cfg": like["text_cfg"] | text_cfg | {"hf_tokenizer_name": name},
    }


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with open_clip's keys; unchanged if it is not in transformers' layout."""
    if "text_model.final_layer_norm.weight" not in state:
        return dict(state)
    merged = _with_qkv(state)
    vision = {key: value for key, value in merged.items() if key.startswith("vis")}
    text = renamed({key: merged[key] for key in merged.keys() - vision.keys()}, _TEXT)
    if "logit_bias" not in state:
        clip = text | renamed(vision, _CLIP_VISION)
        transposed = {key: clip[key].T for key in ("text_projection", "visual.proj")}
        return clip | transposed
    scalars = {key: text.pop(key).reshape(()) for key in ("logit_scale", "logit_bias")}
    tower = renamed(vision, _SIGLIP_VISION)
    tower["visual.trunk.pos_embed"] = tower["visual.trunk.pos_embed"][None]
    for kind in ("weight", "bias"):
        query, *others = tower.pop(f"visual.trunk.attn_pool.qkv.{kind}").chunk(3)
        tower[f"visual.trunk.attn_pool.q.{kind}"] = query
        tower[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat(others)
    return {**scalars, **tower, **{f"text.{key}": value for key, value in text.items()}}


def _with_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the three projections of each attention into one, called ``qkv``."""
    merged = {}
    for key, value in state.items():
        if ".self_attn.q_proj." in key:
            parts = [state[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            merged[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        elif ".self_attn.k_proj." not in key and ".self_attn.v_proj." not in key:
            merged[key] = value
    return merged
