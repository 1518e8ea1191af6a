"""A CLIP architecture of open_clip's that is small enough for tests."""

import json
from pathlib import Path

import open_clip

SMALL_CLIP = "samclip-test-small"
WIDTH, TEXT_DIM, INPUT, GRID = 64, 48, 64, 4

ARCHITECTURE = {
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


def add_small_clip(directory: Path) -> str:
    """Make the architecture known to open_clip in this process; returns its name."""
    path = directory / f"{SMALL_CLIP}.json"
    path.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(path)
    return SMALL_CLIP
