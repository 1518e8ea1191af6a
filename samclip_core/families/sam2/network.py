"""SAM 2.1: Hiera, its neck and its mask decoder, for a pair, whose CLIP head reads pixels.

Shape letters: B images, H W pixels, h w grid of a map, D width, P prompts, N tokens, M masks, G
heads, K windows.
"""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.sam import network as sam
from samclip_core.families.sam2 import BACKBONE, SAM2, SIZES, Sam2Config
from samclip_core.io.official import renamed
from samclip_core.nn.sam_head import MaskDecoder, PromptEncoder
from samclip_core.nn.vit import EncoderOutput, SamPixels

PATCH, KERNEL = 4, 7
_MOST_LOGIT = 32.0
"""The publisher's predictor clips the logits that it returns for a further prompt."""
QUERIES_AT_ONCE = 1024
"""Of global attention in a graph, a quarter of the map: bounds the memory for its products."""
KINDS_OF_POINTS = 4  # not of an object, of one, and the two corners of a box
_OF_BOTH = (
    (r"^image_encoder\.trunk\.", "image_encoder."),
    (r"\.patch_embed\.proj(ection)?\.", ".patches."),
    (r"\.transformer\.layers\.(\d)\.mlp\.layers\.0\.", r".transformer.layers.\1.mlp.lin1."),
    (r"\.transformer\.layers\.(\d)\.mlp\.layers\.1\.", r".transformer.layers.\1.mlp.lin2."),
    *((rf"\.neck\.convs\.{n}\.(conv\.)?", f".lateral.{3 - n}.") for n in range(4)),
    (r"^(image_encoder\..*\.mlp\.layers)\.2\.", r"\1.1."),
    (r"^mask_decoder\.conv_s", "image_encoder.conv_s"),
)
_OF_PUBLISHER = (
    (r"^(memory_|maskmem_|obj_ptr_|no_obj_|mask_downsample\.|no_mem_pos_enc).*", ""),
    (r"^no_mem_embed$", "image_encoder.no_memory"),
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    *_OF_BOTH,
)
_OF_TRANSFORMERS = (
    (
        r"^(memory_|mask_downsample\.|object_pointer_|no_object_|no_memory_positional_|occlusion_"
        r"|temporal_|prompt_encoder\.shared_embedding\.).*",
        "",
    ),
    (r"^no_memory_embedding$", "image_encoder.no_memory"),
    (r"^vision_encoder\.(backbone\.)?", "image_encoder."),
    (r"(\.transformer\..*\.mlp)\.proj_in\.", r"\1.lin1."),
    (r"(\.transformer\..*\.mlp)\.proj_out\.", r"\1.lin2."),
    (r"\.o_proj\.", ".out_proj."),
)
"""Before SAM's names of transformers' layout, most of which are the same."""
_GIVE = f"give {', '.join(SAM2.files)}"
State = dict[str, Tensor]


class Sam2Encoder(nn.Module):
    """SAM 2.1's image encoder, with the layers of its decoder that read the picture alone.

    The maps of four stages, each of half the side and twice the width of the one before, become the
    image embedding, of the third's grid, and two finer ones (``join``), which decoding adds.
    """

    gives_fine_maps = True

    def __init__(self, size: Sam2Config, side: int, embed_dim: int = 256) -> None:
        super().__init__()
        widths = [size.width << stage for stage in range(len(size.depths))]
        self.patches = nn.Conv2d(3, size.width, KERNEL, PATCH, KERNEL // 2)
        self.positions = nn.Parameter(torch.zeros(1, side // PATCH, side // PATCH, size.width))
        self.blocks = nn.ModuleList(_blocks(size))
        self.ends = tuple(end - 1 for end in accumulate(size.depths))
        self.lateral = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths)
        self.no_memory = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.conv_s0 = nn.Conv2d(embed_dim, embed_dim // 8, 1)
        self.conv_s1 = nn.Conv2d(embed_dim, embed_dim // 4, 1)
        self.pixels = SamPixels()

    def forward(self, pixels_B3HW: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode frames that pictures fill: float RGB 0..255, and int (height, width)."""
        x_B3HW = self.pixels(pixels_B3HW, sizes_B2)
        patches_BDhw = self.patches(x_B3HW.to(self.patches.weight.dtype))
        x_BhwD = patches_BDhw.permute(0, 2, 3, 1).contiguous() + self.positions
        maps = list[Tensor]()
        for index, block in enumerate(self.blocks):
            x_BhwD = block(x_BhwD)
            if index in self.ends:
                maps.append(self.lateral[len(maps)](x_BhwD.permute(0, 3, 1, 2)))
        s0_BDhw, s1_BDhw, map_BDhw, deep_BDhw = maps
        deep_BDhw = F.interpolate(deep_BDhw.float(), scale_factor=2.0, mode="nearest")
        map_BDhw = map_BDhw + deep_BDhw + self.no_memory[0, 0, :, None, None]
        fine_BDhw = join(self.conv_s1(s1_BDhw), self.conv_s0(s0_BDhw))
        return EncoderOutput(map_BDhw, pixels_B3HW, fine_BDhw)


def join(s1_BDhw: Tensor, s0_BDhw: Tensor) -> Tensor:
    """Return maps of twice and of four times the embedding's grid as channels on its grid."""
    return torch.cat([F.pixel_unshuffle(s1_BDhw, 2), F.pixel_unshuffle(s0_BDhw, 4)], dim=1)


def _blocks(size: Sam2Config) -> list["_Block"]:
    """Build the blocks; a stage's first one has the windows of the stage before."""
    made, stages = list["_Block"](), range(len(size.depths))
    for stage in stages:
        for number in range(size.depths[stage]):
            first = stage > 0 and number == 0
            window = 0 if len(made) in size.global_blocks else size.windows[stage - first]
            width, heads = size.width << stage, size.heads << stage
            made.append(_Block(width >> first, width, heads, window))
    return made


class _Block(nn.Module):
    """A transformer block over windows of a map; one that widens it halves its sides."""

    def __init__(self, before: int, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.halves = window, before != width
        self.norm1 = nn.LayerNorm(before, eps=1e-6)
        self.attn = _Attention(before, width, heads, self.halves)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        if self.halves:
            self.proj = nn.Linear(before, width)

    def forward(self, x_BhwD: Tensor) -> Tensor:
        normed_BhwD = self.norm1(x_BhwD)
        if self.halves:
            x_BhwD = _halved(self.proj(normed_BhwD))
        x_BhwD = x_BhwD + self._attended(normed_BhwD, *x_BhwD.shape[1:3])
        return x_BhwD + self.mlp(self.norm2(x_BhwD))

    def _attended(self, x_BhwD: Tensor, h: int, w: int) -> Tensor:
        """Attend in windows, padded with zeros, which attend too; the result is h×w."""
        side = self.window
        if not side:
            return self.attn(x_BhwD)
        rows, columns = (-(-n // side) for n in x_BhwD.shape[1:3])
        padding = columns * side - x_BhwD.shape[2], rows * side - x_BhwD.shape[1]
        x_BhwD = F.pad(x_BhwD, (0, 0, 0, padding[0], 0, padding[1]))
        x_Khw = x_BhwD.unflatten(2, (columns, side)).unflatten(1, (rows, side))
        attended_KhwD = self.attn(x_Khw.transpose(2, 3).flatten(0, 2))
        x_Khw = attended_KhwD.unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return x_Khw.flatten(3, 4).flatten(1, 2)[:, :h, :w]


class _Attention(nn.Module):
    def __init__(self, before: int, width: int, heads: int, halves: bool) -> None:
        super().__init__()
        self.heads, self.halves = heads, halves
        self.qkv = nn.Linear(before, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_KhwD: Tensor) -> Tensor:
        q_KhwD, k_KhwD, v_KhwD = self.qkv(x_KhwD).chunk(3, dim=-1)
        if self.halves:
            q_KhwD = _halved(q_KhwD)
        q_KGND, k_KGND, v_KGND = (
            x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (q_KhwD, k_KhwD, v_KhwD)
        )
        exporting = torch.compiler.is_exporting()
        if exporting and self.halves:  # OpenVINO mixes up heads and queries that are equally many
            q_KGND, k_KGND, v_KGND = (x.flatten(0, 1)[:, None] for x in (q_KGND, k_KGND, v_KGND))
        at_once = QUERIES_AT_ONCE if exporting else q_KGND.shape[2]
        some = (
            F.scaled_dot_product_attention(q, k_KGND, v_KGND) for q in q_KGND.split(at_once, dim=2)
        )
        attended_KGND = torch.cat([*some], dim=2).reshape(-1, self.heads, *q_KGND.shape[2:])
        attended_KND = attended_KGND.transpose(1, 2).flatten(2)
        return self.proj(attended_KND.unflatten(1, q_KhwD.shape[1:3]))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(width, 4 * width), nn.Linear(4 * width, width)))

    def forward(self, x_BhwD: Tensor) -> Tensor:
        return self.layers[1](F.gelu(self.layers[0](x_BhwD)))


def _halved(x_BhwD: Tensor) -> Tensor:
    """Take the largest of each 2×2 cells."""
    return F.max_pool2d(x_BhwD.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class Sam2PromptEncoder(PromptEncoder):
    """SAM's prompt encoder; logits of an earlier answer are clipped, as the publisher's are."""

    def embed(
        self, points_PN2: Tensor, labels_PN: Tensor, masks_P1mm: Tensor, has_mask_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        masks_P1mm = masks_P1mm.clamp(-_MOST_LOGIT, _MOST_LOGIT)
        return super().embed(points_PN2, labels_PN, masks_P1mm, has_mask_P)


class Sam2MaskDecoder(MaskDecoder):
    """SAM 2's mask decoder: it adds finer maps, ``join``'s, and tells whether there is an object.

    That has no say in which masks a picture has: the publisher's tracking alone reads it.
    """

    def __init__(self, width: int = 256, depth: int = 2, heads: int = 8, mlp_dim: int = 2048):
        super().__init__(width, depth, heads, mlp_dim)
        self.obj_score_token = nn.Embedding(1, width)
        self.pred_obj_score_head = MLP(width, width, 1, 3)

    def _own_tokens(self) -> Tensor:
        return torch.cat([super()._own_tokens(), self.obj_score_token.weight])

    def _scores(self, hidden_PND: Tensor) -> Tensor:
        score_P1 = self.pred_obj_score_head(hidden_PND[:, 1 + self.num_mask_tokens])
        return torch.cat([super()._scores(hidden_PND), score_P1], dim=1).sigmoid()

    def _upscaled(self, keys_PDhw: Tensor, fine_PDhw: Tensor) -> Tensor:
        s1_PDhw, s0_PDhw = fine_PDhw.tensor_split([self.transformer_dim], dim=1)
        double, norm, act, quadruple, last_act = self.output_upscaling
        x_PDhw = act(norm(double(keys_PDhw) + F.pixel_shuffle(s1_PDhw, 2)))
        return last_act(quadruple(x_PDhw) + F.pixel_shuffle(s0_PDhw, 4))


def image_encoder(config: SamClipConfig) -> Sam2Encoder:
    return Sam2Encoder(config.networks["sam2"], config.image_size, config.embed_dim)


def prompt_encoder(config: SamClipConfig) -> PromptEncoder:
    return sam.prompt_encoder(config, Sam2PromptEncoder)


def mask_decoder(config: SamClipConfig) -> MaskDecoder:
    return sam.mask_decoder(config, Sam2MaskDecoder)


def read(state: Mapping[str, Tensor]) -> State:
    """See ``Family``. Without memory: only videos need it.

    Raises CheckpointError if a table of positions is missing.
    """
    if any(key.startswith("vision_encoder.") for key in state):
        tensors = renamed(state, (*_OF_TRANSFORMERS, *sam.OF_TRANSFORMERS, *_OF_BOTH))
        points = "prompt_encoder.point_embeddings"
        rows_ND = tensors.pop(f"{points}.weight", torch.empty(0))
        for index, row_D in enumerate(rows_ND[:KINDS_OF_POINTS] if rows_ND.ndim else ()):
            tensors[f"{points}.{index}.weight"] = row_D[None]
    else:
        tensors = renamed(state, _OF_PUBLISHER)
    try:
        table, window = [tensors.pop(f"image_encoder.pos_embed{name}") for name in ("", "_window")]
    except KeyError as error:
        raise CheckpointError(f"{error} is missing from this SAM 2: {_GIVE}") from None
    tensors["image_encoder.positions"] = _positions(table, window, VIT_B.image_size // PATCH)
    return tensors


def _positions(table_1Dhw: Tensor, window_1Dhw: Tensor, side: int) -> Tensor:
    """Return the positions of all patches, 1×side×side×D: a table enlarged, and one repeated.

    Not in a graph, because runtimes resize differently from torch.
    """
    fits = table_1Dhw.ndim == window_1Dhw.ndim == 4 and min(table_1Dhw.shape[-2:]) > 0
    fits = fits and all(n and side % n == 0 for n in window_1Dhw.shape[-2:])
    fits = fits and table_1Dhw.shape[1] in {width for width, _ in SIZES}
    if not fits or table_1Dhw.shape[:2] != window_1Dhw.shape[:2] or len(table_1Dhw) != 1:
        raise CheckpointError(
            f"the tables of positions have the shapes {tuple(table_1Dhw.shape)} and "
            f"{tuple(window_1Dhw.shape)}, which are not SAM 2's: {_GIVE}"
        )
    large_1Dhw = F.interpolate(table_1Dhw.float(), (side, side), mode="bicubic")
    times = (side // n for n in window_1Dhw.shape[-2:])
    return (large_1Dhw + window_1Dhw.float().tile(1, 1, *times)).permute(0, 2, 3, 1).contiguous()


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """See ``Family``. Raises CheckpointError if none was published so."""
    try:
        width, *_ = *state["image_encoder.patches.weight"].shape, 0
    except KeyError as error:
        raise CheckpointError(f"{error} is missing from this SAM 2: {_GIVE}") from None
    starts, blocks = set(), set[int]()
    for key in state:
        part, _, rest = key.removeprefix("image_encoder.").partition(".")
        index, _, name = rest.partition(".")
        if part == "blocks" and index.isdecimal() and len(index) < 4:
            blocks.add(int(index))
            starts |= {int(index)} if name == "proj.weight" else set()
    ends = [0, *sorted(starts), len(blocks)]
    depths = tuple(after - before for before, after in pairwise(ends))
    if (width, depths) not in SIZES:
        raise CheckpointError(
            f"SAM 2's encoder has stages of {depths} blocks here, from the width {width}, which is "
            f"none of its published sizes: {_GIVE}"
        )
    return {
        "backbone": BACKBONE,
        "min_predicted_iou": 0.8,
        "task_sizes": None,
        "networks": {"sam2": SIZES[width, depths]},
    }
