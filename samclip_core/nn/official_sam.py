"""Load the published weights of SAM: segment_anything's or transformers' layout, or of a variant.

The variants are MobileSAM, EfficientViT-SAM and SAM 2.1.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from samclip_core.config import SAM_SIZE, VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.io.official import check, read_state, renamed
from samclip_core.nn import sam2
from samclip_core.nn.vit import EFFICIENTVIT_SAM, MOBILE_SAM, PATCH, VARIANTS
from samclip_core.towers import EfficientViTConfig

_PUBLISHED = (
    "sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth, mobile_sam.pt, "
    f"efficientvit_sam_l0.pt, _l1, _l2, _xl0 or _xl1, {sam2.PUBLISHED}, or "
    "model.safetensors of facebook/sam-vit-base, -large or -huge"
)
_OF_TRANSFORMERS = (
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
_OF_MOBILE_SAM = (
    (r"^image_encoder\.(norm_)?head\..*", ""),  # a classifier, left from TinyViT's training
    (r"\.patch_embed\.seq\.0\.", ".patch_embed.conv1."),
    (r"\.patch_embed\.seq\.2\.", ".patch_embed.conv2."),
    # timm counts a merging convolution to the stage after it.
    *((rf"\.layers\.{n}\.downsample\.", f".stages.{n + 1}.downsample.") for n in range(3)),
    (r"^image_encoder\.layers\.", "image_encoder.stages."),
    (r"\.c\.weight$", ".conv.weight"),
)
_OF_EFFICIENTVIT_SAM = (
    (r"^image_encoder\.backbone\.", "image_encoder."),
    (r"\.op_list\.", "."),
    (r"\.input_ops\.(\d+)\.0\.", r".inputs.\1."),
    (r"\.output_ops\.0\.0\.", ".output."),
)


def sam_file(path: Path) -> Path:
    """Return the file of a SAM, which may be in a folder from the hub."""
    return path / "model.safetensors" if path.is_dir() else path


def read_sam(path: Path) -> dict[str, Tensor]:
    """Read a published SAM, with the keys of our networks.

    Raises CheckpointError if the file is missing or damaged, or has none of the known layouts.
    """
    state = read_state(path)
    if sam2.is_sam2(state):
        return sam2.read(state, _OF_TRANSFORMERS)
    if any(key.startswith("vision_encoder.") for key in state):
        return renamed(state, _OF_TRANSFORMERS)
    if any(key.startswith("image_encoder.layers.") for key in state):
        return renamed(state, _OF_MOBILE_SAM)
    if any(key.startswith("image_encoder.backbone.") for key in state):
        return renamed(state, _OF_EFFICIENTVIT_SAM)
    return state


def sam_config(state: Mapping[str, Tensor]) -> SamClipConfig:
    """Return ``VIT_B`` with the encoder, the frame and the width of ``read_sam``'s tensors.

    Raises CheckpointError if they are not those of a published SAM.
    """
    if "image_encoder.positions" in state:
        return sam2.config_of(state)
    try:
        if any(key.startswith("image_encoder.neck.inputs.") for key in state):
            return _of_efficientvit(state)
        config = replace(VIT_B, embed_dim=len(state["image_encoder.neck.0.weight"]))
        if any(key.startswith("image_encoder.stages.") for key in state):
            return replace(config, backbone=MOBILE_SAM)
        positions_1hwD = state["image_encoder.pos_embed"]
    except KeyError as error:
        raise CheckpointError(
            f"{error} is missing, so this is no SAM that can be read: give {_PUBLISHED}"
        ) from None
    side = positions_1hwD.shape[1] * PATCH
    return replace(
        config,
        backbone=_variant(state),
        image_size=side,
        task_sizes=VIT_B.task_sizes if side == VIT_B.image_size else None,
    )


def _of_efficientvit(state: Mapping[str, Tensor]) -> SamClipConfig:
    """Return the config of an EfficientViT-SAM.

    Raises KeyError for a missing tensor, and CheckpointError if the encoder's do not fit together.
    """
    stages, neck = "image_encoder.stages", "image_encoder.neck"
    blocks = {tuple(key.split(".")[1:4]) for key in state if key.startswith((stages, neck))}
    depths = Counter(block[:2] for block in blocks)
    last = sum(part == "stages" for part, _ in depths) - 1
    aggregate = state[f"{stages}.{last}.1.context_module.main.aggreg.0.1.weight"]
    norms = [f"{stages}.{n}.0.main.point_conv.norm.weight" for n in range(1, last + 1)]
    size = EfficientViTConfig(
        widths=tuple(state[key].numel() for key in (f"{stages}.0.0.norm.weight", *norms)),
        depths=tuple(depths["stages", str(n)] - 1 for n in range(last + 1)),
        head=math.prod(aggregate.shape[1:]),
        neck_width=state[f"{neck}.inputs.0.norm.weight"].numel(),
        neck_depth=depths["neck", "middle"],
    )
    size.check("the file of --sam")
    from samclip_core.nn.efficientvit import EfficientViTEncoder

    width = state["image_encoder.norm.weight"].numel()
    prefix = "image_encoder."
    encoder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    make = partial(EfficientViTEncoder, size, width)
    check(make, encoder, "the file of --sam", "EfficientViT-SAM's encoder")
    side = 512 if len(size.widths) == 5 else SAM_SIZE
    return replace(
        VIT_B,
        backbone=EFFICIENTVIT_SAM,
        image_size=side,
        stride=side // 64,
        embed_dim=width,
        task_sizes=None,
        efficientvit=size,
    )


def _variant(state: Mapping[str, Tensor]) -> str:
    width = state["image_encoder.pos_embed"].shape[-1]
    blocks = {key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")}
    for name, size in VARIANTS.items():
        if (size.width, size.depth) == (width, len(blocks)):
            return name
    raise CheckpointError(
        f"SAM's encoder has {len(blocks)} blocks of width {width} here, which is none of its "
        f"published sizes: give {_PUBLISHED}"
    )
