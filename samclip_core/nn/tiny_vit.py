"""MobileSAM's image encoder: timm's TinyViT and SAM's neck. B images, H W pixels, h w grid."""

from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from samclip_core.nn.encoder import EncoderOutput
from samclip_core.nn.vit import SamPixels


class TinyViTEncoder(TinyVit):
    """MobileSAM's image encoder, which passes the pixels to CLIP as tokens.

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

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded frames: float RGB 0..255, and int (height, width) of their valid part."""
        x_B3HW = self.pixels(pixels_B3HW, sizes_B2)
        map_BDhw = self.forward_features(x_B3HW.to(self.neck[0].weight.dtype))
        return EncoderOutput(self.neck(map_BDhw), pixels_B3HW)
