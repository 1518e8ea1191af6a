"""Complete, valid checkpoints with small seeded random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from samclip_core.calibration import (
    AdaptiveSearch,
    Alike,
    Calibration,
    LikelyScores,
    Likeness,
    Presence,
    RegionWeights,
)
from samclip_core.config import (
    EDGE,
    VIT_B,
    ClipHeadConfig,
    DecoderConfig,
    Kind,
    SamClipConfig,
    TaskSizes,
    TextConfig,
)
from samclip_core.families.radio import MlpConfig, RadioConfig
from samclip_core.io import checkpoint
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.text_encoder import build_text_encoder
from tests.clip_models import ARCHITECTURE
from tests.weights import seeded

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "the", "dog", "cat", "photo", "of", "grass"]
_PIECES = [*_SPECIAL, *_WORDS, *(f"##{word}" for word in _WORDS)]
_SENTENCE = TextConfig(
    tower="sentence", layers=1, width=32, heads=2, hidden=64, vocabulary=len(_PIECES), max_tokens=32
)
_SMALL: dict[str, Any] = {
    "image_size": 128,
    "embed_dim": 32,
    "text_dim": 32,
    "decoder": DecoderConfig(depth=1, heads=2, mlp=64),
    "text": _SENTENCE,
    "points_per_side": 4,
}

_REGIONS = RegionWeights(
    predicted_iou=1.828,
    stability=2.25,
    log_area=0.254,
    contrast=0.128,
    log_probability=0.209,
    border=-0.492,
)
_WITHIN = Likeness(
    clip=3.287,
    sam=6.967,
    quality=4.718,
    log_area=0.548,
    difference=-0.429,
    offset=-7.376,
    min_score=0.905,
)
_ACROSS = Likeness(
    clip=4.281,
    sam=4.837,
    quality=5.176,
    log_area=0.403,
    difference=0.012,
    offset=-6.228,
    min_score=0.919,
)
CALIBRATION = Calibration(
    presence=Presence(
        map_weight=0.304,
        pooled_weight=0.127,
        offset=-3.672,
        min_score=0.661,
        regions=_REGIONS,
    ),
    attention=60.0,
    search=AdaptiveSearch(explained=0.35, parted=0.3, min_predicted_iou=0.3, min_area=0.0005),
    min_label_score=0.3,
    text_weight=1.5,
    alike=Alike(within=_WITHIN, across=_ACROSS),
    likely=LikelyScores(
        images=0.176,
        objects=0.316,
        images_growth=0.0727,
        images_most=104,
        objects_growth=0.0742,
        objects_most=15,
    ),
)
"""Numbers such as the bundled checkpoint's, which may change."""

TINY: dict[Kind, SamClipConfig] = {
    "edge": replace(
        EDGE,
        name="tiny-edge",
        calibration=CALIBRATION,
        clip_head=ClipHeadConfig(width=64, hidden=50),
        **_SMALL,
    ),
    "vit-b": replace(
        VIT_B,
        name="tiny-vit",
        backbone="tiny",
        clip_head=ClipHeadConfig(layers=1),
        task_sizes=None,
        **_SMALL,
    ),
    "pair": replace(
        VIT_B,
        kind="pair",
        name="tiny-pair",
        backbone="mobile-sam",
        image_size=128,
        embed_dim=32,
        text_dim=ARCHITECTURE["embed_dim"],
        clip_head=None,
        decoder=DecoderConfig(depth=1, heads=2, mlp=64),
        text=TextConfig(tower="open_clip", model="tiny", open_clip={"model_cfg": ARCHITECTURE}),
        points_per_side=4,
        task_sizes=None,
    ),
}
TINY["radio"] = replace(
    TINY["vit-b"],
    kind="radio",
    name="tiny-radio",
    backbone="radio",
    min_predicted_iou=0.0,
    min_stability=0.0,
    image_size=256,
    clip_head=None,
    networks={
        "radio": RadioConfig(
            width=48,
            depth=2,
            heads=3,
            hidden=96,
            prefix=8,
            class_token=1,
            table=6,
            words=MlpConfig(hidden=64, blocks=1, output=32),
            sam=MlpConfig(hidden=64, blocks=1, output=40),
            normalised=True,
        )
    },
)

TINY_RADIO = TINY["radio"].networks["radio"]
WITHOUT_MASKS: dict[str, Any] = {
    "name": "tiny-v4",
    "decoder": None,
    "embed_dim": 0,
    "networks": {"radio": replace(TINY_RADIO, sam=None)},
}
"""Changes that make a ``radio`` like a C-RADIOv4, which has no adaptor for SAM."""

BESIDE_MOBILE_SAM: dict[str, Any] = {
    "backbone": "mobile-sam",
    "task_sizes": TaskSizes(classify=128, semantic=128, retrieval=128),
    "networks": {"radio": replace(TINY_RADIO, sam=None)},
}
"""Changes that make a ``radio`` whose masks are MobileSAM's."""


def make_tiny_checkpoint(
    directory: Path, kind: Kind = "edge", seed: int = 0, **changes: Any
) -> Path:
    """Write a checkpoint with random weights to ``directory``, and return it.

    ``changes`` are fields of its config with other values.
    """
    config = replace(TINY[kind], **changes)
    net = seeded(lambda: build(config), seed)
    if config.masks:
        _make_confident(net)
    tokenizer = tokenizer_json() if config.text.tower == "sentence" else None  # else CLIP's own
    text_encoder = seeded(lambda: build_text_encoder(config.text, tokenizer), seed)
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
    numbers = {piece: index for index, piece in enumerate(_PIECES)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return str(tokenizer.to_str())
