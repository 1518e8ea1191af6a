"""SAM's parts, the CLIP head that a merge trains on its encoder, and its published files.

These have segment_anything's layout or transformers'.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samclip_core.config import VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.sam import SAM, VARIANTS
from samclip_core.io.official import renamed
from samclip_core.nn.clip_head import ClipHead
from samclip_core.nn.sam_head import MaskDecoder, PromptEncoder
from samclip_core.nn.vit import PATCH, ImageEncoder

OF_TRANSFORMERS = (
    (r"^prompt_encoder\.shared_embedding\..*", ""),  # a copy of the next in older files
    (
        r"^shared_image_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layers\.0\.(weight|bias)$", r".layers.1.\1"),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
    (r"\.layer_norm", ".norm"),
)


def image_encoder(config: SamClipConfig) -> ImageEncoder:
    return ImageEncoder(config.backbone, config.image_size, config.embed_dim)


def clip_head(config: SamClipConfig) -> ClipHead:
    vit, head = config.vit, config.clip_head
    if vit is None or head is None:
        raise CheckpointError(
            f"config.json: backbone {config.backbone} and clip_head {head} are of no merge with SAM"
        )
    return ClipHead(vit.width, vit.heads, config.grid, config.text_dim, depth=head.layers)


def prompt_encoder(
    config: SamClipConfig, made: type[PromptEncoder] = PromptEncoder
) -> PromptEncoder:
    return made(
        embed_dim=config.embed_dim,
        image_embedding_size=(config.grid, config.grid),
        input_image_size=(config.prompt_size, config.prompt_size),
        mask_in_chans=16,
    )


def mask_decoder(config: SamClipConfig, made: type[MaskDecoder] = MaskDecoder) -> MaskDecoder:
    decoder = config.decoder
    assert decoder is not None
    return made(config.embed_dim, decoder.depth, decoder.heads, decoder.mlp)


def read(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See ``Family``."""
    ours = not any(key.startswith("vision_encoder.") for key in state)
    return dict(state) if ours else renamed(state, OF_TRANSFORMERS)


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See ``Family``. Raises KeyError for a missing tensor, and CheckpointError for other sizes."""
    neck, positions_1hwD = (state[f"image_encoder.{key}"] for key in ("neck.0.weight", "pos_embed"))
    side = positions_1hwD.shape[1] * PATCH
    return {
        "backbone": _variant(state, positions_1hwD.shape[-1]),
        "embed_dim": len(neck),
        "image_size": side,
        "task_sizes": VIT_B.task_sizes if side == VIT_B.image_size else None,
    }


def _variant(state: Mapping[str, Tensor], width: int) -> str:
    blocks = {key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")}
    for name, size in VARIANTS.items():
        if (size.width, size.depth) == (width, len(blocks)):
            return name
    raise CheckpointError(
        f"SAM's encoder has {len(blocks)} blocks of width {width} here, which is none of its "
        f"published sizes: give {', '.join(SAM.files)}"
    )
