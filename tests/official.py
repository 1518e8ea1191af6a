"""Official models with seeded random weights, and their files in the official layout."""

from functools import partial
from pathlib import Path

import open_clip
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from samclip_core.families.sam import VARIANTS
from tests.weights import seeded


def small_sam(
    image_size: int = 1024, width: int = 256, seed: int = 0, variant: str = "tiny"
) -> Sam:
    """Return SAM as ``build_sam`` builds it, except for the image encoder's size."""
    size, grid = VARIANTS[variant], image_size // 16

    def build() -> Sam:
        return Sam(
            ImageEncoderViT(
                img_size=image_size,
                embed_dim=size.width,
                depth=size.depth,
                num_heads=size.heads,
                out_chans=width,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=size.window,
                global_attn_indexes=size.global_blocks,
            ),
            PromptEncoder(width, (grid, grid), (image_size, image_size), mask_in_chans=16),
            MaskDecoder(
                transformer_dim=width,
                transformer=TwoWayTransformer(
                    depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8
                ),
                iou_head_hidden_dim=width,
            ),
        )

    return sharpened(seeded(build, seed))


def sharpened(sam: Sam) -> Sam:
    """Scale the mask logits of random weights to those of trained weights, about ±10.

    With logits near zero, any two networks would agree within an absolute tolerance.
    """
    with torch.no_grad():
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(50)
    return sam


def clip(model: str, seed: int = 0) -> nn.Module:
    """Return an open_clip model."""
    return seeded(lambda: open_clip.create_model(model, pretrained=None), seed)


def write(model: nn.Module, directory: Path, name: str) -> Path:
    """Write the state dict in the official layout, and return the file."""
    path = directory / name
    torch.save(model.state_dict(), path)
    return path
