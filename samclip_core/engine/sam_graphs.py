"""Export the image encoder as tools for SAM read it, with the inputs and outputs of samexporter's.

``samclip_core.engine.sam_layout`` makes the decoder beside it. H W pixels of a picture, D width,
h w grid, S side of the checkpoint's frame.
"""

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from samclip_core.config import SamClipConfig
from samclip_core.engine.graphs import trace
from samclip_core.nn.network import SamClipNet
from samclip_core.nn.vit import PATCH, with_positions


class _Encoder(nn.Module):
    def __init__(self, net: SamClipNet, side: int) -> None:
        super().__init__()
        self.image_encoder, self.side = with_positions(net.image_encoder, side // PATCH), side

    def forward(self, input_image: Tensor) -> Tensor:
        """Resize a picture, H×W×3 RGB 0..255, to the frame, and encode it: 1×D×h×w."""
        height, width = input_image.shape[:2]
        longest = torch.sym_max(height, width)
        h, w = (
            torch.sym_max((2 * side * self.side + longest) // (2 * longest), 1)
            for side in (height, width)
        )
        pixels_13HW = input_image.permute(2, 0, 1)[None]
        pixels_13hw = F.interpolate(pixels_13HW, (h, w), mode="bilinear", antialias=True)
        pixels_13SS = F.pad(pixels_13hw, (0, self.side - w, 0, self.side - h))
        size_12 = torch.cat([torch.full((1, 1), side, dtype=torch.int64) for side in (h, w)], 1)
        embedding_1Dhw: Tensor = self.image_encoder(pixels_13SS, size_12)[0]
        return embedding_1Dhw


def encoder(net: SamClipNet, config: SamClipConfig) -> ir.Model:
    """Export ``input_image`` float H×W×3 → ``image_embeddings``."""
    inputs = {"input_image": torch.zeros(300, 200, 3)}
    shapes = {"input_image": {0: Dim("image_height"), 1: Dim("image_width")}}
    return trace(_Encoder(net, config.image_size), inputs, ("image_embeddings",), shapes)
