"""An open_clip architecture that is small enough for tests."""

import json
from pathlib import Path
from typing import Any

import open_clip

from samclip_core.config import TextConfig

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
