"""open_clip architectures that are small enough for tests."""

import json
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from samclip_core.config import TextConfig
from samclip_core.nn.clip_model import build_model
from tests.weights import seeded

SMALL_CLIP = "samclip-test-small"
WIDTH, TEXT_DIM, INPUT, GRID = 64, 48, 64, 4

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": TEXT_DIM,
    "vision_cfg": {
        "image_size": INPUT,
        "layers": 3,
        "width": WIDTH,
        "patch_size": INPUT // GRID,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 2,
        "layers": 2,
    },
}


def named(model: str) -> TextConfig:
    """Return the configuration of a model in open_clip's list."""
    return TextConfig(tower="open_clip", model=model)


def add_small_clip(directory: Path) -> str:
    """Register the architecture with open_clip in this process, and return its name."""
    return add_clip(directory, SMALL_CLIP, {})


def add_clip(directory: Path, name: str, vision: dict[str, Any]) -> str:
    """Register it as ``name``, with ``vision`` in place of its image tower unless that is empty."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(ARCHITECTURE | ({"vision_cfg": vision} if vision else {})))
    open_clip.add_model_config(path)
    return name


PE_CORE: dict[str, Any] = {
    "image_size": 384,
    "timm_model_name": "vit_pe_core_tiny_patch16_384",
    "timm_pool": "map",
    "timm_proj": None,
}
"""The smallest image tower of PE-Core: rotary positions, pooling by attention."""


def write_clip(folder: Path, vision: dict[str, Any] | None = None) -> Path:
    """Write the small CLIP in open_clip's layout of the hub, and return the folder.

    ``vision`` takes the place of its image tower.
    """
    folder.mkdir(parents=True)
    architecture = ARCHITECTURE | ({"vision_cfg": vision, "custom_text": True} if vision else {})
    description = {"model_cfg": architecture, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    text = TextConfig(tower="open_clip", model="clip", open_clip=description)
    model = seeded(lambda: build_model(text), 0)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


SIGLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit3",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 16,
            "hf_tokenizer_name": "nobody/samclip-test-siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": WIDTH,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5], "resize_mode": "squash"},
}
"""A model like SigLIP 2: pooling by attention, a tokenizer and pixel statistics of its own."""


def write_siglip(folder: Path) -> Path:
    """Write the small SigLIP in the layout of the hub, and return the folder."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(SIGLIP))
    model = seeded(lambda: build_model(siglip_text()), 0)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a SigLIP's tokenizer with a few words."""
    words = ["<unk>", "<pad>", "</s>", "a", "photo", "of", "dog", "cat", "colour", "1", "2", "3"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))


def siglip_text() -> TextConfig:
    """Return the configuration of the small SigLIP."""
    return TextConfig(tower="open_clip", model="siglip", open_clip=SIGLIP)
