"""SAM's ViT image encoder with fused attention, and what all image encoders share.

Shape letters: B images, C channels, H W pixels, h w patch grid, N tokens, D width, G heads.
"""

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from segment_anything.modeling import image_encoder
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from samclip_core.families.sam import VARIANTS


class EncoderOutput(NamedTuple):
    sam_BDhw: Tensor | None  # SAM's image embedding, if the checkpoint has masks
    tokens_BDhw: Tensor  # the input of the CLIP head
    fine_BDhw: Tensor | None = None  # finer maps, as channels, if masks need them


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


Module = TypeVar("Module", bound=nn.Module)
PATCH = 16
ROWS_AT_ONCE = 16
"""Most rows of a map whose position biases a graph holds at once: 0.2 GB in ViT-B, a quarter of all
64 rows. At least 14, so that a window is one block."""
EXCLUDED = -1e4
"""Added to the logits of a key that is padding. Its exponential is 0; infinity would make gradients
NaN, and float16 has no number below -65504."""
# SAM's constants, for pixel values 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SamPixels(nn.Module):
    """SAM's preprocessing: normalises pixels, then sets those outside the valid part to zero."""

    mean_311: Tensor
    std_311: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_311", torch.tensor(PIXEL_MEAN).view(3, 1, 1), False)
        self.register_buffer("std_311", torch.tensor(PIXEL_STD).view(3, 1, 1), False)

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> Tensor:
        normalised_B3HW = (pixels_B3HW - self.mean_311) / self.std_311
        return normalised_B3HW * valid_mask(sizes_B2, *pixels_B3HW.shape[-2:])[:, None]


class ImageEncoder(image_encoder.ImageEncoderViT):
    """SAM's image encoder, with unchanged state-dict keys.

    ``checkpointing`` trades time for memory in training; see ``run_blocks``.
    """

    checkpointing = False

    def __init__(self, variant: str, image_size: int = 1024, embed_dim: int = 256):
        size = VARIANTS[variant]
        super().__init__(
            img_size=image_size,
            patch_size=PATCH,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            out_chans=embed_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=size.window,
            global_attn_indexes=size.global_blocks,
        )
        for block in self.blocks:
            block.attn = RelPosAttention(block.attn)
        self.pixels = SamPixels()

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded frames.

        Args:
            pixels_B3HW: RGB, float, 0..255; height and width are multiples of 16.
            sizes_B2: int64 (height, width) in pixels of each frame's valid, top-left part.

        Returns:
            ``sam_BDhw`` after the neck and ``tokens_BDhw`` before it, h = H / 16.
        """
        x_B3HW = self.pixels(pixels_B3HW, sizes_B2)
        tokens_BhwD = self.patch_embed(x_B3HW.to(self.patch_embed.proj.weight.dtype))
        # Contiguous, because otherwise every later layer norm would copy it.
        tokens_BhwD = tokens_BhwD.contiguous() + self._positions(tokens_BhwD.shape[1:3])
        tokens_BhwD = run_blocks(self.blocks, tokens_BhwD, self.checkpointing)
        tokens_BDhw = tokens_BhwD.permute(0, 3, 1, 2)
        return EncoderOutput(self.neck(tokens_BDhw), tokens_BDhw)

    def _positions(self, grid: torch.Size) -> Tensor:
        if self.pos_embed.shape[1:3] == grid:
            return self.pos_embed
        table_1Dhw = F.interpolate(
            self.pos_embed.permute(0, 3, 1, 2), grid, mode="bicubic", antialias=True
        )
        return table_1Dhw.permute(0, 2, 3, 1)


def with_positions(module: Module, grid: int) -> Module:
    """Return a copy of an encoder, a head or both whose tables fit a map of ``grid``×``grid``.

    Exported graphs need them: runtimes resize differently from torch.
    """
    resized = deepcopy(module)
    for part in resized.modules():
        if isinstance(part, ImageEncoder):
            part.pos_embed = nn.Parameter(part._positions(torch.Size((grid, grid))))
        elif isinstance(part, image_encoder.Block) and not part.window_size:
            for name in ("rel_pos_h", "rel_pos_w"):
                table_ND = getattr(part.attn, name)
                if len(table_ND) != 2 * grid - 1:  # as SAM's ``get_rel_pos`` resizes it
                    table_1DN = F.interpolate(table_ND.T[None], 2 * grid - 1, mode="linear")
                    setattr(part.attn, name, nn.Parameter(table_1DN[0].T))
    return resized


def run_blocks(
    blocks: Iterable[nn.Module], tokens_BhwD: Tensor, checkpointing: bool, *shared: Tensor
) -> Tensor:
    """Apply blocks in turn; each also gets the ``shared`` tensors.

    With ``checkpointing``, only the input of each block is kept for the backward pass, which
    recomputes the rest: the same gradients, a third more arithmetic, a fraction of the memory.
    """
    for block in blocks:
        if checkpointing:
            # Blocks draw no random numbers, so the RNG state need not be saved.
            tokens_BhwD = checkpoint(
                block, tokens_BhwD, *shared, use_reentrant=False, preserve_rng_state=False
            )
        else:
            tokens_BhwD = block(tokens_BhwD, *shared)
    return tokens_BhwD


class GlobalBlock(image_encoder.Block):
    """One of SAM's blocks without windows; with ``key_padding``, it attends to the valid cells."""

    def forward(self, x_BhwD: Tensor, *padding: Tensor) -> Tensor:
        x_BhwD = x_BhwD + self.attn(self.norm1(x_BhwD), *padding)
        return x_BhwD + self.mlp(self.norm2(x_BhwD))


def transformer_block(width: int, heads: int, grid: int) -> GlobalBlock:
    """Build one of SAM's blocks, with fused global attention over a grid×grid map."""
    block = GlobalBlock(
        dim=width,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        input_size=(grid, grid),
    )
    block.attn = RelPosAttention(block.attn)
    return block


def key_padding(rows_Bh: Tensor, columns_Bw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what leaves padding out of the softmax, added to the biases of rows and of columns.

    ``rows_Bh`` and ``columns_Bw`` say which hold picture; the valid part of a frame is a rectangle.
    """
    rows, columns = ((~valid).to(dtype) * EXCLUDED for valid in (rows_Bh, columns_Bw))
    return rows, columns


class RelPosAttention(nn.Module):
    """SAM's attention with decomposed relative positions, fused by torch or by a graph's compiler.

    SAM adds ``rel_h[q, row(k)] + rel_w[q, column(k)]`` to the scaled ``q·k``; both terms are
    products of q with a table of positions. To leave out padding, ``key_padding`` is added to them.
    """

    def __init__(self, attention: image_encoder.Attention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.rel_pos_h = attention.rel_pos_h
        self.rel_pos_w = attention.rel_pos_w

    def forward(
        self, x_BhwD: Tensor, row_Bh: Tensor | None = None, column_Bw: Tensor | None = None
    ) -> Tensor:
        batch, h, w, _ = x_BhwD.shape
        qkv = self.qkv(x_BhwD).view(batch, h, w, 3, self.num_heads, -1)
        q_BGhwD, k_BGhwD, v_BGhwD = qkv.permute(3, 0, 4, 1, 2, 5)
        rows_hhD = get_rel_pos(h, h, self.rel_pos_h).to(qkv.dtype)
        columns_wwD = get_rel_pos(w, w, self.rel_pos_w).to(qkv.dtype)
        bias_BGhwh = torch.einsum("bghwd,hkd->bghwk", q_BGhwD, rows_hhD)
        bias_BGhww = torch.einsum("bghwd,wkd->bghwk", q_BGhwD, columns_wwD)
        if row_Bh is not None and column_Bw is not None:
            bias_BGhwh = bias_BGhwh + row_Bh[:, None, None, None]
            bias_BGhww = bias_BGhww + column_Bw[:, None, None, None]
        attend = attend_in_rows if torch.compiler.is_exporting() else attend_fused
        attended_BGhwD = attend(q_BGhwD, k_BGhwD * self.scale, v_BGhwD, bias_BGhwh, bias_BGhww)
        return self.proj(attended_BGhwD.permute(0, 2, 3, 1, 4).flatten(3))


def attend_fused(
    q_BGhwD: Tensor, k_BGhwD: Tensor, v_BGhwD: Tensor, bias_BGhwh: Tensor, bias_BGhww: Tensor
) -> Tensor:
    """Attend in one fused call, for torch. Takes scaled keys, returns ``BGhwD``.

    Appending both biases to q, and the one-hot row and column to k, makes the sum a plain dot
    product. Values are padded to the same width because the fused kernels require equal widths;
    the padding yields zeros and is cut off.
    """
    batch, heads, h, w, width = q_BGhwD.shape
    eye_hh, eye_ww = (torch.eye(n, dtype=k_BGhwD.dtype, device=k_BGhwD.device) for n in (h, w))
    one_hot_hwN = torch.cat([eye_hh[:, None].expand(h, w, h), eye_ww.expand(h, w, w)], dim=-1)
    query = torch.cat([q_BGhwD, bias_BGhwh, bias_BGhww], dim=-1)
    key = torch.cat([k_BGhwD, one_hot_hwN.expand(batch, heads, h, w, h + w)], dim=-1)
    value = F.pad(v_BGhwD, (0, h + w))
    attended_BGND = F.scaled_dot_product_attention(
        query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), scale=1.0
    )
    return attended_BGND[..., :width].unflatten(2, (h, w))


def attend_in_rows(
    q_BGhwD: Tensor, k_BGhwD: Tensor, v_BGhwD: Tensor, bias_BGhwh: Tensor, bias_BGhww: Tensor
) -> Tensor:
    """Attend by blocks of query rows, for exported graphs. Takes scaled keys, returns ``BGhwD``.

    OpenVINO fuses each GEMM, bias, softmax and GEMM into one kernel, with a third of the arithmetic
    of ``attend_fused``: SAM's ViT-B takes two thirds of the time.
    """
    key_BGDN, value_BGND = k_BGhwD.flatten(2, 3).mT, v_BGhwD.flatten(2, 3)
    attended = []
    for query, row_bias, column_bias in zip(
        *(x.split(ROWS_AT_ONCE, dim=2) for x in (q_BGhwD, bias_BGhwh, bias_BGhww)), strict=True
    ):
        bias_BGhwhw = row_bias[..., :, None] + column_bias[..., None, :]
        logits_BGNN = query.flatten(2, 3) @ key_BGDN + bias_BGhwhw.flatten(4).flatten(2, 3)
        attended.append(logits_BGNN.softmax(dim=-1) @ value_BGND)
    return torch.cat(attended, dim=2).unflatten(2, v_BGhwD.shape[2:4])
