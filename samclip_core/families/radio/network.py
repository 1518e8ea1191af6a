"""The ``radio`` kind: one ViT, distilled from several teachers, and an adaptor for each.

An adaptor is an MLP into its teacher's space. Shape letters: B images, S side of the model frame,
h w patch grid, N tokens, D width, T side of the table of positions in cells.
"""

from functools import partial
from math import isqrt

import torch
from segment_anything.modeling import ImageEncoderViT
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import SamClipConfig
from samclip_core.families.radio import RADIO, MlpConfig, RadioConfig
from samclip_core.nn.vit import PATCH, EncoderOutput, valid_mask


class Adaptor(nn.Module):
    """RADIO's MLP of version 2: a linear layer, residual blocks and a last layer."""

    def __init__(self, width: int, sizes: MlpConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, sizes.hidden)
        self.blocks = nn.ModuleList(_layer(sizes.hidden, sizes.hidden) for _ in range(sizes.blocks))
        self.final = _layer(sizes.hidden, sizes.output)

    def forward(self, x_ND: Tensor) -> Tensor:
        x_ND = self.fc1(x_ND)
        for block in self.blocks:
            x_ND = x_ND + block(x_ND)
        return self.final(x_ND)


def _layer(width: int, output: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, output))


class RadioEncoder(nn.Module):
    """RADIO's ViT and, for masks, its adaptor for SAM and the neck of SAM's own ViT-H."""

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(self, radio: RadioConfig, embed_dim: int) -> None:
        super().__init__()
        self.class_token, self.table, width = radio.class_token, radio.table, radio.width
        self.register_buffer("norm_mean", torch.zeros(3, 1, 1))  # of pixels 0..1
        self.register_buffer("norm_std", torch.ones(3, 1, 1))
        self.embedder = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.prefix = nn.Parameter(torch.zeros(radio.prefix, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, radio.table**2, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                radio.heads,
                mlp_ratio=radio.hidden / width,
                qkv_bias=True,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for _ in range(radio.depth)
        )
        self.normaliser = nn.Linear(width, width) if radio.normalised else nn.Identity()
        self.masks = radio.sam is not None
        if radio.sam is not None:
            self.sam = Adaptor(width, radio.sam)
            self.neck = ImageEncoderViT(
                embed_dim=radio.sam.output, out_chans=embed_dim, depth=0, use_abs_pos=False
            ).neck

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded frames, each exactly as its valid part alone.

        Padding cells are no keys of the attention, and positions start at the top-left corner.

        Args:
            pixels_B3SS: RGB, float, 0..255; S is a multiple of 16.
            sizes_B2: int64 (height, width) in pixels of each frame's valid, top-left part.

        Returns:
            ``sam_BDhw`` (None without masks), and as ``tokens`` B×N×D: the class token for words,
            then the patches.
        """
        pixels_B3SS = (pixels_B3SS / 255 - self.norm_mean) / self.norm_std
        pixels_B3SS = pixels_B3SS * valid_mask(sizes_B2, *pixels_B3SS.shape[-2:])[:, None]
        patches_BDhw = self.embedder(pixels_B3SS.to(self.embedder.weight.dtype))
        grid = patches_BDhw.shape[-2:]
        patches_BND = (patches_BDhw + self._positions(grid)).flatten(2).mT
        prefix_BND = self.prefix.to(patches_BND.dtype).expand(patches_BND.shape[0], -1, -1)
        tokens_BND = torch.cat([prefix_BND, patches_BND], dim=1)

        valid_Bhw = valid_mask(sizes_B2, grid[0], grid[1], PATCH)
        keys_BN = F.pad(valid_Bhw.flatten(1), (len(self.prefix), 0), value=True)
        for block in self.blocks:
            tokens_BND = block(tokens_BND, attn_mask=keys_BN[:, None, None])

        class_B1D = tokens_BND[:, self.class_token, None]
        patches_BND = self.normaliser(tokens_BND[:, len(self.prefix) :])
        tokens_BND = torch.cat([class_B1D, patches_BND], dim=1)
        if not self.masks:
            return EncoderOutput(None, tokens_BND)
        sam_BDhw = self.sam(patches_BND).mT.unflatten(2, grid) * valid_Bhw[:, None]
        return EncoderOutput(self.neck(sam_BDhw), tokens_BND)

    def _positions(self, grid: torch.Size) -> Tensor:
        table_1DTT = self.pos_embed.mT.unflatten(2, (self.table, self.table))
        if grid == table_1DTT.shape[-2:]:
            return table_1DTT
        return F.interpolate(table_1DTT, grid, mode="bilinear")


class RadioClipHead(nn.Module):
    """The adaptor for words, which reads the class token and each patch alike."""

    def __init__(self, radio: RadioConfig) -> None:
        super().__init__()
        self.words = Adaptor(radio.width, radio.words)

    def forward(self, tokens_BND: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every patch and the whole image: ``dense_BDhw`` and ``pooled_BD``, of length 1."""
        words_BND = F.normalize(self.words(tokens_BND), dim=-1)
        side = isqrt(tokens_BND.shape[1] - 1)
        return words_BND[:, 1:].mT.unflatten(2, (side, side)), words_BND[:, 0]


class RadioTower(RadioClipHead):
    """RADIO for words alone, beside another encoder."""

    reads_pixels = True

    def __init__(self, radio: RadioConfig, side: int) -> None:
        """``side`` is the largest that RADIO reads; a larger frame is a multiple of it."""
        super().__init__(radio)
        self.side, self.trunk = side, RadioEncoder(radio, 0)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed as ``RadioClipHead`` does, from padded frames: RGB, float, 0..255."""
        step = pixels_B3SS.shape[-1] // self.side
        if step > 1:
            valid_B1SS = valid_mask(sizes_B2, *pixels_B3SS.shape[-2:])[:, None].float()
            share_B1ss = F.avg_pool2d(valid_B1SS, step).clamp(min=1 / step**2)
            pixels_B3SS = F.avg_pool2d(pixels_B3SS * valid_B1SS, step) / share_B1ss
            sizes_B2 = (sizes_B2 + step - 1) // step
        return super().forward(self.trunk(pixels_B3SS, sizes_B2).tokens_BDhw, sizes_B2)


def image_encoder(config: SamClipConfig) -> RadioEncoder:
    return RadioEncoder(config.networks["radio"], config.embed_dim)


def clip_head(config: SamClipConfig) -> RadioClipHead:
    """Build the adaptor for words, with RADIO in front of it beside another image encoder."""
    radio = config.networks["radio"]
    if config.family is RADIO:
        return RadioClipHead(radio)
    return RadioTower(radio, config.size_of("semantic"))
