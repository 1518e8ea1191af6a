"""A dense teacher that is small enough for tests."""

from pathlib import Path

import timm

from tests.official import write
from tests.weights import seeded

TINY_DENSE = "test_vit2"  # a ViT with a class token and a register; its input has 160 pixels


def write_dense(folder: Path) -> str:
    """Write its seeded random weights to ``folder``, and return MODEL:FILE."""
    model = seeded(lambda: timm.create_model(TINY_DENSE), 0)
    return f"{TINY_DENSE}:{write(model, folder, 'dense.pth')}"
