"""The output of every image encoder, and the mask of the valid part of its frame.

B images, D width, h w grid, H W cells or pixels of a frame that is padded right and bottom.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class EncoderOutput(NamedTuple):
    sam_BDhw: Tensor | None  # SAM's image embedding, if the checkpoint has masks
    tokens_BDhw: Tensor  # the input of the CLIP head


def valid_mask(sizes_B2: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """Return ``mask_BHW``, bool: true where a cell of ``stride`` pixels holds image, even in part.

    ``sizes_B2``: int (height, width) in pixels of each image, in the frame's top-left corner.
    """
    rows_H1 = torch.arange(height, device=sizes_B2.device)[:, None]
    columns_W = torch.arange(width, device=sizes_B2.device)
    cells_B2 = (sizes_B2 + stride - 1) // stride
    heights_B11, widths_B11 = cells_B2[:, :, None, None].unbind(1)
    return (rows_H1 < heights_B11) & (columns_W < widths_B11)
