"""The network of a checkpoint: an image encoder and its heads, built part by part.

B batch, S side of the model frame, h w grid, D width.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from cachetools import LRUCache, cached
from torch import Tensor, nn

from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.io.shapes import shapes_of
from samclip_core.nn.clip_head import ClipHead
from samclip_core.nn.sam_head import MaskDecoder, PromptEncoder
from samclip_core.nn.vit import (
    MOBILE_SAM,
    PATCH,
    TINY_VIT,
    VARIANTS,
    ImageEncoder,
    ViTSize,
)
from samclip_core.towers import RadioConfig

ENCODER_PARTS = ("image_encoder", "clip_head")
SAM_HEAD_PARTS = ("prompt_encoder", "mask_decoder")
PARTS = ENCODER_PARTS + SAM_HEAD_PARTS
SAM_PARTS = ("image_encoder", *SAM_HEAD_PARTS)
EDGE_TOKENS = 320 + 112  # channels of the two trunk maps that the edge's CLIP head reads


class EncodedBatch(NamedTuple):
    """The backbone's output for a batch; CLIP's vectors have length 1 along D.

    ``sam_BDhw`` is None if the checkpoint has no masks, ``fine_BDhw`` if these need no finer maps.
    """

    sam_BDhw: Tensor | None
    clip_dense_BDhw: Tensor
    clip_pooled_BD: Tensor
    fine_BDhw: Tensor | None = None


class SamClipNet(nn.Module):
    """The parts of a checkpoint, named as the prefixes of its keys; some may be absent."""

    image_encoder: nn.Module
    clip_head: nn.Module
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def encode(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncodedBatch:
        """Encode padded frames: float RGB 0..255, and int (height, width) of their valid part."""
        encoded = self.image_encoder(pixels_B3SS, sizes_B2)
        tokens_BDhw = encoded.tokens_BDhw
        if getattr(self.clip_head, "reads_pixels", False):  # it has an encoder of its own
            tokens_BDhw = pixels_B3SS
        dense_BDhw, pooled_BD = self.clip_head(tokens_BDhw, sizes_B2)
        return EncodedBatch(encoded.sam_BDhw, dense_BDhw, pooled_BD, encoded.fine_BDhw)


def build(config: SamClipConfig, parts: Collection[str] = PARTS) -> SamClipNet:
    """Build the named parts that the checkpoint has, with random weights, in training mode.

    Raises CheckpointError if the kind has no such encoder or head.
    """
    builders = {
        "image_encoder": _image_encoder,
        "clip_head": _clip_head,
        "prompt_encoder": _prompt_encoder,
        "mask_decoder": _mask_decoder,
    }
    exist = PARTS if config.masks else ENCODER_PARTS
    return SamClipNet({name: builders[name](config) for name in exist if name in parts})


def load_net(directory: Path, parts: Collection[str] = PARTS) -> SamClipNet:
    """Load the named parts of a checkpoint in evaluation mode, frozen, as float32 on the CPU."""
    config, parts = checkpoint.read_config(directory), frozenset(parts)
    make = partial(build, config, parts)
    # Without any parts, ``load_weights`` expects all.
    if parts:
        net = checkpoint.load_weights(directory, make, parts, expected=_shapes(config, parts))
    else:
        net = make()
    return net.eval().requires_grad_(False)


@cached(LRUCache(maxsize=16), key=lambda config, parts: (repr(config), parts), lock=Lock())
def _shapes(config: SamClipConfig, parts: frozenset[str]) -> dict[str, list[int]]:
    """Return the shapes of a network's tensors: computing them takes as long as building it."""
    return shapes_of(partial(build, config, parts))


# timm and open_clip are slow to import: only the kinds that need them import them.


def _image_encoder(config: SamClipConfig) -> nn.Module:
    if config.kind == "edge":
        from samclip_core.nn.edge import BACKBONE, STRIDE, EdgeEncoder

        if (config.backbone, config.stride) != (BACKBONE, STRIDE):
            raise CheckpointError(
                f"config.json: an edge encoder is {BACKBONE} at stride {STRIDE}, found "
                f"{config.backbone} at stride {config.stride}"
            )
        return EdgeEncoder(config.embed_dim)
    if config.backbone == MOBILE_SAM:
        from samclip_core.nn.tiny_vit import TinyViTEncoder

        return TinyViTEncoder(config.embed_dim)
    if config.efficientvit:
        from samclip_core.nn.efficientvit import EfficientViTEncoder

        return EfficientViTEncoder(config.efficientvit, config.embed_dim)
    if config.sam2:
        from samclip_core.nn.sam2 import Sam2Encoder

        return Sam2Encoder(config.sam2, config.image_size, config.embed_dim)
    if config.kind == "radio":
        from samclip_core.nn.radio import RadioEncoder

        return RadioEncoder(_radio(config), config.embed_dim)
    _vit_size(config)
    return ImageEncoder(config.backbone, config.image_size, config.embed_dim)


def _clip_head(config: SamClipConfig) -> nn.Module:
    if config.kind == "pair":
        from samclip_core.nn.clip_tower import PairClipHead

        return PairClipHead(config.text)
    if config.kind == "radio":
        from samclip_core.nn.radio import RadioClipHead, RadioTower

        if config.backbone == MOBILE_SAM:
            return RadioTower(_radio(config), config.size_of("semantic"))
        return RadioClipHead(_radio(config))
    head = config.clip_head
    if head is None:
        raise CheckpointError(
            "config.json: clip_head is null, which only the kinds 'pair' and 'radio' allow"
        )
    if config.kind == "edge":
        from samclip_core.nn.edge import EdgeClipHead

        return EdgeClipHead(EDGE_TOKENS, config.text_dim, head.width, head.hidden)
    size = _vit_size(config)
    return ClipHead(size.width, size.heads, config.grid, config.text_dim, depth=head.layers)


def _prompt_encoder(config: SamClipConfig) -> nn.Module:
    if config.kind == "edge":
        from samclip_core.nn.edge import EdgePromptEncoder

        return EdgePromptEncoder(config.embed_dim, config.grid, config.image_size)
    made = PromptEncoder
    if config.sam2:
        from samclip_core.nn.sam2 import Sam2PromptEncoder

        made = Sam2PromptEncoder
    return made(
        embed_dim=config.embed_dim,
        image_embedding_size=(config.grid, config.grid),
        input_image_size=(config.prompt_size, config.prompt_size),
        mask_in_chans=16,
    )


def _mask_decoder(config: SamClipConfig) -> nn.Module:
    decoder = config.decoder
    assert decoder is not None
    sizes = (config.embed_dim, decoder.depth, decoder.heads, decoder.mlp)
    if config.kind == "edge":
        from samclip_core.nn.edge import EdgeMaskDecoder

        return EdgeMaskDecoder(*sizes)
    if config.sam2:
        from samclip_core.nn.sam2 import Sam2MaskDecoder

        return Sam2MaskDecoder(*sizes)
    made = MaskDecoder(*sizes)
    if config.efficientvit:
        from samclip_core.nn.efficientvit import EPSILON

        for layer in made.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = EPSILON
    return made


def _radio(config: SamClipConfig) -> RadioConfig:
    if config.radio is None:
        raise CheckpointError(
            "config.json: radio is null, but the kind 'radio' needs its sizes: convert it again"
        )
    return config.radio


def _vit_size(config: SamClipConfig) -> ViTSize:
    known = VARIANTS | {MOBILE_SAM: TINY_VIT}
    if config.backbone not in known or config.stride != PATCH:
        raise CheckpointError(
            f"config.json: {config.backbone} at stride {config.stride} is not one of SAM's "
            f"encoders: expected {', '.join(known)} at stride {PATCH}"
        )
    return known[config.backbone]
