"""EfficientViT-SAM's image encoder, of timm's EfficientViT blocks. B images, H W pixels, h w grid.

Shape letters: D width of a map.
"""

from functools import partial

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

from samclip_core.nn.vit import EncoderOutput, SamPixels
from samclip_core.towers import EfficientViTConfig

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
