"""EfficientViT-SAM's image encoder, of timm's EfficientViT blocks, and its published files.

B images, H W pixels, h w grid.

Shape letters: D width of a map.
"""

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from segment_anything.modeling.common import LayerNorm2d
from timm.layers import GELUTanh
from timm.models.efficientvit_mit import (
    ConvNormAct,
    EfficientVitBlock,
    FusedMBConv,
    LiteMLA,
    ResidualBlock,
    build_local_block,
)
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import SamClipConfig
from samclip_core.families.efficientvit_sam import BACKBONE, EfficientViTConfig
from samclip_core.families.sam import network as sam
from samclip_core.io.official import check, renamed
from samclip_core.nn.sam_head import MaskDecoder
from samclip_core.nn.vit import EncoderOutput, SamPixels

_NAMES = (
    (r"^image_encoder\.backbone\.", "image_encoder."),
    (r"\.op_list\.", "."),
    (r"\.input_ops\.(\d+)\.0\.", r".inputs.\1."),
    (r"\.output_ops\.0\.0\.", ".output."),
)
_FILE = "the file of --sam"
EPSILON = 1e-6
"""Of every norm, also of the mask decoder's: the publisher sets it after building the model."""
_NORM = partial(nn.BatchNorm2d, eps=EPSILON)
_STAGES = {
    5: (("large", 1), ("fused", 4), ("fused", 4), ("default", 4), ("attention", 6)),  # L
    6: (("large", 1), *[("fused", 4)] * 3, ("attention", 4), ("attention", 6)),  # XL
}
"""By the number of stages: timm's name of each stage's blocks, and how often they widen a map."""
_KERNEL = {5: 5, 6: 3}
"""By the number of stages: side of the convolution that aggregates queries, keys and values."""
_NECK_EXPANSION = {5: 1, 6: 4}


class EfficientViTEncoder(nn.Module):
    """EfficientViT-SAM's image encoder, for a pair, whose CLIP head reads pixels.

    Its state dict has the publisher's names without the levels of its containers. The map of the
    third stage from the end has the embedding's grid.
    """

    def __init__(self, size: EfficientViTConfig, embed_dim: int = 256) -> None:
        super().__init__()
        stages = len(size.widths)
        self.stages = nn.ModuleList(_stage(size, number) for number in range(stages))
        self.neck = _Neck(size, _NECK_EXPANSION[stages], embed_dim)
        self.norm = LayerNorm2d(embed_dim, EPSILON)
        self.pixels = SamPixels()

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded frames: float RGB 0..255, and int (height, width) of their valid part."""
        x_B3HW = self.pixels(pixels_B3HW, sizes_B2)
        maps = [x_B3HW.to(next(self.stages.parameters()).dtype)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        # In float32, because the norm squares the neck's output, and float16 ends at 65,504.
        return EncoderOutput(self.norm(self.neck(maps[:-4:-1]).float()), pixels_B3HW)


class _Neck(nn.Module):
    def __init__(self, size: EfficientViTConfig, expansion: int, embed_dim: int) -> None:
        super().__init__()
        width = size.neck_width
        self.inputs = nn.ModuleList(
            ConvNormAct(each, width, 1, norm_layer=_NORM, act_layer=None)
            for each in size.widths[:-4:-1]
        )
        self.middle = nn.Sequential(
            *(_neck_block(width, expansion) for _ in range(size.neck_depth))
        )
        self.output = ConvNormAct(width, embed_dim, 1, bias=True, norm_layer=None, act_layer=None)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Join the maps of the last three stages, the last one first, on the finest one's grid."""
        deep_BDhw, middle_BDhw, fine_BDhw = (
            layer(x) for layer, x in zip(self.inputs, maps, strict=True)
        )
        for x in (middle_BDhw, deep_BDhw):
            large_BDhw = F.interpolate(x, fine_BDhw.shape[-2:], mode="bicubic")
            fine_BDhw = fine_BDhw + large_BDhw
        return self.output(self.middle(fine_BDhw))


class _Block(EfficientVitBlock):
    """timm's block, with the publisher's aggregate and its epsilon."""

    def __init__(self, width: int, head: int, expansion: int, kernel: int) -> None:
        super().__init__(
            width, head_dim=head, expand_ratio=expansion, norm_layer=_NORM, act_layer=GELUTanh
        )
        self.context_module.main = LiteMLA(
            width, width, dim=head, scales=(kernel,), norm_layer=(None, _NORM), eps=1e-15
        )


def _stage(size: EfficientViTConfig, number: int) -> nn.Sequential:
    """Build a stage, which halves the map's sides in its first layer."""
    kind, expansion = _STAGES[len(size.widths)][number]
    width, kernel = size.widths[number], _KERNEL[len(size.widths)]
    if number:
        first = _residual(size.widths[number - 1], width, kind, 4 * expansion, stride=2)
    else:
        first = ConvNormAct(3, width, 3, 2, norm_layer=_NORM, act_layer=GELUTanh)
    others = (
        _Block(width, size.head, expansion, kernel)
        if kind == "attention"
        else _residual(width, width, kind, expansion, stride=1)
        for _ in range(size.depths[number])
    )
    return nn.Sequential(first, *others)


def _residual(before: int, width: int, kind: str, expansion: int, stride: int) -> ResidualBlock:
    """Build a convolutional block; one that halves the map has no shortcut."""
    fewer_norms = kind in ("default", "attention")
    name = "default" if fewer_norms else kind
    block = build_local_block(before, width, stride, expansion, _NORM, GELUTanh, fewer_norms, name)
    return ResidualBlock(block, nn.Identity() if stride == 1 else None)


def _neck_block(width: int, expansion: int) -> ResidualBlock:
    block = FusedMBConv(
        width, width, expand_ratio=expansion, norm_layer=_NORM, act_layer=(GELUTanh, None)
    )
    return ResidualBlock(block, nn.Identity())


def image_encoder(config: SamClipConfig) -> EfficientViTEncoder:
    return EfficientViTEncoder(config.networks["efficientvit"], config.embed_dim)


def mask_decoder(config: SamClipConfig) -> MaskDecoder:
    made = sam.mask_decoder(config)
    for layer in made.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = EPSILON
    return made


def read(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See ``Family``."""
    return renamed(state, _NAMES)


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See ``Family``.

    Raises KeyError for a missing tensor, and CheckpointError if the encoder's do not fit together.
    """
    size = _sizes(state)
    size.check(_FILE)
    width = state["image_encoder.norm.weight"].numel()
    prefix = "image_encoder."
    encoder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    check(partial(EfficientViTEncoder, size, width), encoder, _FILE, "EfficientViT-SAM's encoder")
    side = 512 if len(size.widths) == 5 else 1024
    return {
        "backbone": BACKBONE,
        "image_size": side,
        "stride": side // 64,
        "embed_dim": width,
        "task_sizes": None,
        "networks": {"efficientvit": size},
    }


def _sizes(state: Mapping[str, Tensor]) -> EfficientViTConfig:
    stages, neck = "image_encoder.stages", "image_encoder.neck"
    blocks = {tuple(key.split(".")[1:4]) for key in state if key.startswith((stages, neck))}
    depths = Counter(block[:2] for block in blocks)
    last = sum(part == "stages" for part, _ in depths) - 1
    aggregate = state[f"{stages}.{last}.1.context_module.main.aggreg.0.1.weight"]
    norms = [f"{stages}.{n}.0.main.point_conv.norm.weight" for n in range(1, last + 1)]
    return EfficientViTConfig(
        widths=tuple(state[key].numel() for key in (f"{stages}.0.0.norm.weight", *norms)),
        depths=tuple(depths["stages", str(n)] - 1 for n in range(last + 1)),
        head=math.prod(aggregate.shape[1:]),
        neck_width=state[f"{neck}.inputs.0.norm.weight"].numel(),
        neck_depth=depths["neck", "middle"],
    )
