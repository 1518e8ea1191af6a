"""Write a checkpoint of SAM's size with random weights, a small text tower and no CLIP layers."""

from dataclasses import replace
from pathlib import Path

from samclip_core.config import VIT_B, ClipHeadConfig
from samclip_core.io import checkpoint
from samclip_core.nn.network import build
from samclip_core.nn.text_encoder import build_text_encoder
from tests import tiny


def make(directory: Path) -> None:
    text = tiny.TINY["vit-b"].text
    config = replace(
        VIT_B,
        name="random",
        text=text,
        text_dim=text.width,
        clip_head=ClipHeadConfig(layers=0),
        task_sizes=None,
    )
    text_encoder = build_text_encoder(text, tiny.tokenizer_json())
    checkpoint.save(directory, build(config).eval(), text_encoder, config, {}, card="# Random\n")
