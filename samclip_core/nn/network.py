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

from samclip_core import families
from samclip_core.config import SamClipConfig
from samclip_core.families.sam import SAM
from samclip_core.io import checkpoint
from samclip_core.io.shapes import shapes_of
from samclip_core.nn.sam_head import MaskDecoder, PromptEncoder

ENCODER_PARTS = ("image_encoder", "clip_head")
SAM_HEAD_PARTS = ("prompt_encoder", "mask_decoder")
PARTS = ENCODER_PARTS + SAM_HEAD_PARTS
SAM_PARTS = ("image_encoder", *SAM_HEAD_PARTS)


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

    Raises CheckpointError if the family or the kind has no such encoder or head.
    """
    exist = PARTS if config.masks else ENCODER_PARTS
    return SamClipNet({name: _part(config, name) for name in exist if name in parts})


def _part(config: SamClipConfig, name: str) -> nn.Module:
    """Build a part by its family's module; one that it has no function for is SAM's."""
    family = config.family
    if name == "clip_head":
        if config.kind not in families.KINDS:  # slow to import, as families' networks are
            from samclip_core.nn.clip_tower import PairClipHead

            return PairClipHead(config.text)
        family = families.KINDS[config.kind]
    own = getattr(family.module("network"), name, None)
    made: nn.Module = (own or getattr(SAM.module("network"), name))(config)
    return made


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
