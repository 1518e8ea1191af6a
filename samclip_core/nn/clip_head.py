"""The CLIP head: maps the image encoder's patch tokens into CLIP's text space.

Shape letters: B images, h w patch grid, D width of the tokens or of the text space.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.nn.vit import (
    PATCH,
    key_padding,
    run_blocks,
    transformer_block,
    valid_mask,
    valid_sides,
)


class ClipHead(nn.Module):
    """Transformer blocks → maximum over the cells → LayerNorm → MLP with two hidden layers.

    The blocks attend to the cells that hold picture. Without that, a padded frame would not be
    answered as the square crops without padding that the head learns from.
    ``checkpointing`` trades time for memory in training; see ``run_blocks``.
    """

    checkpointing = False

    def __init__(
        self,
        width: int,
        heads: int,
        grid: int,
        text_dim: int,
        *,
        depth: int = 3,
    ):
        """Build the head for a model frame of ``grid``×``grid`` patches.

        The position tables are interpolated for frames of other sizes.
        """
        super().__init__()
        self.blocks = nn.Sequential(*(transformer_block(width, heads, grid) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, text_dim),
        )

    def forward(self, tokens_BDhw: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every patch and the whole image; both have length 1 along D.

        Args:
            tokens_BDhw: the encoder's patch tokens.
            sizes_B2: int64 (height, width) in pixels of the valid part of the model frame; patches
                outside it are neither attended to nor pooled.

        Returns:
            ``dense_BDhw`` and ``pooled_BD``; D is the width of the text space.
        """
        tokens_BhwD = tokens_BDhw.permute(0, 2, 3, 1)
        _, height, width, _ = tokens_BhwD.shape
        sides = valid_sides(sizes_B2, height, width, PATCH)
        padding = key_padding(*sides, tokens_BhwD.dtype)
        tokens_BhwD = run_blocks(self.blocks, tokens_BhwD, self.checkpointing, *padding)
        dense_BhwD = F.normalize(self.mlp(self.norm(tokens_BhwD)), dim=-1)
        pooled_BD = self.mlp(self.norm(self._pool(tokens_BhwD, sizes_B2)))
        return dense_BhwD.permute(0, 3, 1, 2), F.normalize(pooled_BD, dim=-1)

    def _pool(self, tokens_BhwD: Tensor, sizes_B2: Tensor) -> Tensor:
        _, height, width, _ = tokens_BhwD.shape
        valid_Bhw1 = valid_mask(sizes_B2, height, width, PATCH)[..., None]
        return tokens_BhwD.masked_fill(~valid_Bhw1, -torch.inf).amax(dim=(1, 2))


def init_from_encoder(head: ClipHead, last_block: Mapping[str, Tensor]) -> None:
    """Initialise every block of the head from the encoder's last block, as in the paper.

    ``last_block`` has the weights of one of SAM's blocks. Without tables of positions, those of the
    head stay as they are, at zero.
    """
    for block in head.blocks:
        block.load_state_dict(block.state_dict() | dict(last_block))
