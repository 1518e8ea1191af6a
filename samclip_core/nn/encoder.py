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
    rows_BH, columns_BW = valid_sides(sizes_B2, height, width, stride)
    return rows_BH[:, :, None] & columns_BW[:, None]


def valid_sides(
    sizes_B2: Tensor, height: int, width: int, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Return which rows BH and which columns BW hold image, bool; otherwise as ``valid_mask``."""
    cells_B2 = (sizes_B2 + stride - 1) // stride
    sides = zip((height, width), cells_B2.unbind(1), strict=True)
    rows_BH, columns_BW = (torch.arange(n, device=c.device) < c[:, None] for n, c in sides)
    return rows_BH, columns_BW
