"""Complete, valid checkpoints with small seeded random weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samclip_core.config import (
    EDGE,
    VIT_B,
    ClipHeadConfig,
    DecoderConfig,
    Kind,
    SamClipConfig,
    TextConfig,
)
from samclip_core.io import checkpoint
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.text_encoder import build_text_encoder
from tests.weights import seeded

_WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "the", "dog", "cat", "photo", "of", "grass"]
_SENTENCE = TextConfig(
    tower="sentence",
    layers=1,
    width=32,
    heads=2,
    hidden=64,
    vocabulary=5 + 2 * len(_WORDS),
    max_tokens=32,
)

CALIBRATION = checkpoint.read_config(checkpoint.resolve("edge")).calibration
"""That of the bundled checkpoint."""
assert CALIBRATION is not None

TINY: dict[Kind, SamClipConfig] = {
    "edge": replace(
        EDGE,
        calibration=CALIBRATION,
        name="tiny-edge",
        image_size=128,
        embed_dim=32,
        text_dim=32,
        clip_head=ClipHeadConfig(width=64, hidden=50),
        decoder=DecoderConfig(depth=1, heads=2, mlp=64),
        text=_SENTENCE,
        points_per_side=4,
    ),
    "vit-b": replace(
        VIT_B,
        name="tiny-vit",
        backbone="tiny",
        image_size=128,
        embed_dim=32,
        text_dim=32,
        clip_head=ClipHeadConfig(layers=1),
        decoder=DecoderConfig(depth=1, heads=2, mlp=64),
        text=_SENTENCE,
        points_per_side=4,
        task_sizes=None,
    ),
}


def make_tiny_checkpoint(
    directory: Path, kind: Kind = "edge", seed: int = 0, **changes: Any
) -> Path:
    """Write a checkpoint with random weights to ``directory``, and return it.

    ``changes`` are fields of its config with other values.
    """
    config = replace(TINY[kind], **changes)
    net = seeded(lambda: build(config), seed)
    _make_confident(net)
    text_encoder = seeded(lambda: build_text_encoder(config.text, tokenizer_json()), seed)
    checkpoint.save(directory, net, text_encoder, config, {"seed": seed}, card="# Random weights\n")
    return directory


def _make_confident(net: SamClipNet) -> None:
    """Make masks sharp and their predicted IoU high, so that segment_everything keeps some."""
    decoder = net.mask_decoder
    with torch.no_grad():
        decoder.iou_prediction_head.layers[-1].bias.add_(1.0)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(300)
            mlp.layers[-1].bias.mul_(300)


def tokenizer_json() -> str:
    """Return a WordPiece tokenizer in BERT's layout with letters, digits and a few words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + _WORDS + [f"##{word}" for word in _WORDS]
    marks = {name: {"id": name, "ids": [pieces.index(name)], "tokens": [name]} for name in special}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for index, name in enumerate(special)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {name: marks[name] for name in ("[CLS]", "[SEP]")},
        },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
        },
    }
    return json.dumps(tokenizer)
