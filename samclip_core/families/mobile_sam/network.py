"""MobileSAM's image encoder, timm's TinyViT and SAM's neck, and its published file.

B images, H W pixels, h w grid.
"""

from collections.abc import Mapping
from typing import Any, Self

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, TinyVit, TinyVitBlock
from torch import Tensor, nn

from samclip_core.config import SamClipConfig
from samclip_core.families.mobile_sam import BACKBONE
from samclip_core.io.official import renamed
from samclip_core.nn.vit import EncoderOutput, SamPixels

_NAMES = (
    (r"^image_encoder\.(norm_)?head\..*", ""),  # a classifier, left from TinyViT's training
    (r"\.patch_embed\.seq\.0\.", ".patch_embed.conv1."),
    (r"\.patch_embed\.seq\.2\.", ".patch_embed.conv2."),
    # timm counts a merging convolution to the stage after it.
    *((rf"\.layers\.{n}\.downsample\.", f".stages.{n + 1}.downsample.") for n in range(3)),
    (r"^image_encoder\.layers\.", "image_encoder.stages."),
    (r"\.c\.weight$", ".conv.weight"),
)


class TinyViTEncoder(TinyVit):
    """MobileSAM's image encoder.

    It has timm's keys, because MobileSAM's differ from them in names alone, and no table that
    depends on the frame: positions are relative, within windows.
    """

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__(
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        self.stages[3].downsample.conv2.conv.stride = (1, 1)  # so that the map has SAM's stride
        self.head = nn.Identity()
        self.neck = nn.Sequential(
            nn.Conv2d(320, embed_dim, 1, bias=False),
            LayerNorm2d(embed_dim),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
            LayerNorm2d(embed_dim),
        )
        self.pixels = SamPixels()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; attention stays in training mode, in which nothing else differs.

        In evaluation mode timm would keep the position biases of the first call, also while they
        learn, as networks here do in evaluation mode.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, Attention):
                module.train(True)
        return self

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded frames: float RGB 0..255, and int (height, width) of their valid part.

        ``tokens_BDhw`` is the map before the neck, at SAM's stride.
        """
        x_B3HW = self.pixels(pixels_B3HW, sizes_B2)
        map_BDhw = self.forward_features(x_B3HW.to(self.neck[0].weight.dtype))
        return EncoderOutput(self.neck(map_BDhw), map_BDhw)


def as_global_block(block: TinyVitBlock) -> dict[str, Tensor]:
    """Return a block's weights with the keys of SAM's, which attends to the whole map.

    Without its convolution and its position biases, which belong to a window.
    """
    attention, mlp, heads = block.attn, block.mlp, block.attn.num_heads
    layers = {"norm1": attention.norm, "norm2": mlp.norm, "attn.proj": attention.proj}
    layers |= {"mlp.lin1": mlp.fc1, "mlp.lin2": mlp.fc2}
    state = {f"{n}.{k}": value for n, layer in layers.items() for k, value in _weights(layer)}
    for key, value in _weights(attention.qkv):  # TinyViT's rows are sorted by head, SAM's by part
        by_head = value.unflatten(0, (heads, 3, -1))
        state[f"attn.qkv.{key}"] = by_head.transpose(0, 1).flatten(0, 2)
    return state


def _weights(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.state_dict().items()]


def image_encoder(config: SamClipConfig) -> TinyViTEncoder:
    return TinyViTEncoder(config.embed_dim)


def read(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See ``Family``."""
    return renamed(state, _NAMES)


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See ``Family``. Raises KeyError for a missing tensor."""
    return {"backbone": BACKBONE, "embed_dim": len(state["image_encoder.neck.0.weight"])}
