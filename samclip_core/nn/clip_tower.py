"""Image towers of open_clip and others, which embed patches of padded frames; the kind ``pair``.

A ``pair`` has SAM's image encoder and CLIP's image tower as parts of one network.

Shape letters: B images, C channels, H W pixels, S side of the model frame, L pixels of a resized
side, h w grid, N cells, D width.
"""

from typing import Any, TypeAlias

import torch
from open_clip.model import _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import Filter, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.families import FAMILIES, TOWERS
from samclip_core.nn.clip_model import BICUBIC, description, pixel_statistics

Tower: TypeAlias = VisionTransformer | ModifiedResNet | TimmModel | Any
"""Or a tower without open_clip, whose ``read`` returns class tokens B×N×D, and ``dense_BDhw``."""


def build_tower(text: TextConfig) -> Tower:
    """Build the image tower of an open_clip model, with random weights.

    Raises CheckpointError if there is no such model, or if ``with_patches`` refuses it.
    """
    architecture = description(text)["model_cfg"]
    vision = architecture["vision_cfg"] | {"timm_model_pretrained": False}
    # A complete model would have the text tower as well.
    tower: Tower = _build_vision_tower(
        architecture["embed_dim"], vision, architecture.get("quick_gelu", False)
    )
    return with_patches(tower, text.model)


def with_patches(tower: Tower, model: str) -> Tower:
    """Return ``tower`` if single patches have an embedding in the text space.

    Raises CheckpointError if an attention over several queries pools them, or if timm cannot read
    the patches. Attention with one query returns a patch's value where that patch is the only one.
    """
    if isinstance(tower, TimmModel) and not hasattr(tower.trunk, "forward_intermediates"):
        raise CheckpointError(
            f"timm reads no map of patches from the image tower of {model!r} (its model has no "
            "forward_intermediates): use for example ViT-B-32, ViT-L-14 or a SigLIP"
        )
    pools = tower.head if isinstance(tower, TimmModel) else tower
    if hasattr(pools, "pool") or getattr(pools, "attn_pool", None) is not None:
        raise CheckpointError(
            f"the image tower of {model!r} pools its patches by attention, so single patches "
            "cannot be compared with texts: use for example ViT-B-32, ViT-L-14 or a SigLIP"
        )
    return tower


def resize_valid(
    pixels_B3SS: Tensor, sizes_B2: Tensor, side: int | tuple[int, int], filter: Filter
) -> Tensor:
    """Crop the valid parts and resize each to a tower's input: ``pixels_B3HW``, 0..255.

    Equals ``F.interpolate(mode=filter, antialias=True)`` of each part, but runs on the whole batch
    and without data-dependent shapes, so that it can be exported to a graph.
    """
    height, width = (side, side) if isinstance(side, int) else side
    rows_BHS = _weights(sizes_B2[:, 0], height, pixels_B3SS.shape[-2], filter)
    columns_BWS = _weights(sizes_B2[:, 1], width, pixels_B3SS.shape[-1], filter)
    with torch.autocast(pixels_B3SS.device.type, enabled=False):  # bfloat16 rounds pixels
        resized_B3HW = rows_BHS[:, None] @ pixels_B3SS.float() @ columns_BWS[:, None].mT
    # Bicubic interpolation overshoots at edges; CLIP was trained on 8-bit pictures, which cannot.
    return resized_B3HW.clamp(0, 255)


def _weights(valid_B: Tensor, length: int, frame: int, filter: Filter) -> Tensor:
    """Return the weight of each of ``frame`` pixels in each of ``length`` resized ones: ``B×L×S``.

    Only the first ``valid_B`` pixels count. The kernel is a triangle, or cubic with a = -0.5, and
    is scaled to the size of a resized pixel when downsampling.
    """
    scale_B11 = (valid_B / length)[:, None, None]
    centre_BL1 = (torch.arange(length, device=valid_B.device)[:, None] + 0.5) * scale_B11
    pixel_S = torch.arange(frame, device=valid_B.device)
    x_BLS = (pixel_S + 0.5 - centre_BL1).abs() / scale_B11.clamp(min=1)
    triangle_BLS = (1 - x_BLS).clamp(min=0)
    weight_BLS = triangle_BLS if filter == "bilinear" else _cubic(x_BLS.clamp(max=2))
    weight_BLS = weight_BLS * (pixel_S < valid_B[:, None, None])
    return weight_BLS / weight_BLS.sum(dim=-1, keepdim=True)


def _cubic(x_BLS: Tensor) -> Tensor:
    near_BLS = (1.5 * x_BLS - 2.5) * x_BLS * x_BLS + 1
    far_BLS = ((2.5 - 0.5 * x_BLS) * x_BLS - 4) * x_BLS + 2
    return torch.where(x_BLS < 1, near_BLS, far_BLS)


def read_tower(tower: Tower, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Embed the patches of normalised pixels and the whole picture, all of length 1 along D.

    ``dense_BDhw`` embeds each patch as if it were the whole picture: the tower's pooling is applied
    to that patch alone, or the tower reads itself. ``pooled_BD`` is its first class token, or
    open_clip's ``encode_image``.
    """
    if hasattr(tower, "read"):
        class_BND, dense_BDhw = tower.read(pixels_B3HW)
        pooled_BD = class_BND[:, 0]
    elif isinstance(tower, VisionTransformer):
        dense_BDhw, pooled_BD = _read_vit(tower, pixels_B3HW)
    else:
        map_BChw, pooled_BD = _read_map(tower, pixels_B3HW)
        cells_NC = map_BChw.permute(0, 2, 3, 1).flatten(0, 2)
        grid = map_BChw.shape[0], *map_BChw.shape[2:]
        dense_BDhw = _read_cells(tower, cells_NC).unflatten(0, grid).permute(0, 3, 1, 2)
    return F.normalize(dense_BDhw, dim=1), F.normalize(pooled_BD, dim=-1)


def _read_vit(tower: VisionTransformer, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Embed the patches of CLIP's own ViTs as MaskCLIP does, and the whole picture.

    In the last block each patch attends only to itself, because full attention there gathers global
    instead of local information. ``ln_post`` and ``proj`` follow, as for the class token.
    """
    *_, last_block = tower.transformer.resblocks
    out = tower.forward_intermediates(
        pixels_B3HW, indices=[len(tower.transformer.resblocks) - 2], output_fmt="NLC"
    )
    (patches_BND,) = out["image_intermediates"]
    others_NN = ~torch.eye(patches_BND.shape[1], dtype=torch.bool, device=patches_BND.device)
    only_itself_NN = torch.zeros_like(others_NN, dtype=torch.float32)
    only_itself_NN = only_itself_NN.masked_fill(others_NN, -torch.inf)
    patches_BND = last_block(patches_BND, attn_mask=only_itself_NN)
    dense_BND = tower.ln_post(patches_BND) @ tower.proj
    return dense_BND.transpose(1, 2).unflatten(2, tower.grid_size), out["image_features"]


def _read_map(tower: TimmModel | ModifiedResNet, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the feature map ``map_BChw`` that the tower pools, and its ``pooled_BD``."""
    if isinstance(tower, ModifiedResNet):
        out = tower.forward_intermediates(pixels_B3HW, indices=1)
        return out["image_intermediates"][0], out["image_features"]
    trunk = tower.trunk
    features, (map_BChw,) = trunk.forward_intermediates(pixels_B3HW, indices=1, norm=True)
    if hasattr(trunk, "final_conv"):  # FastViT widens its last intermediate map with it
        map_BChw = features
    return map_BChw, tower.head(trunk.forward_head(features))


def _read_cells(tower: TimmModel | ModifiedResNet, cells_NC: Tensor) -> Tensor:
    """Pool each cell of the last feature map alone, and project it into the text space."""
    if isinstance(tower, ModifiedResNet):  # attention over one cell returns its value
        return tower.attnpool.c_proj(tower.attnpool.v_proj(cells_NC))
    if hasattr(tower.trunk, "num_prefix_tokens"):  # class-token or average pooling
        tokens = 1 + tower.trunk.num_prefix_tokens
        return tower.head(tower.trunk.forward_head(cells_NC[:, None].expand(-1, tokens, -1)))
    channels_last = getattr(tower.trunk, "output_fmt", "NCHW") == "NHWC"  # Swin
    map_N11 = cells_NC[:, None, None] if channels_last else cells_NC[:, :, None, None]
    return tower.head(tower.trunk.forward_head(map_N11))


def lay_over_frame(dense_BDhw: Tensor, sizes_B2: Tensor, frame: int, cells: int) -> Tensor:
    """Resample as ``resample_over_frame``, to vectors of length 1."""
    return F.normalize(resample_over_frame(dense_BDhw, sizes_B2, frame, cells), dim=1)


def resample_over_frame(map_BDhw: Tensor, sizes_B2: Tensor, frame: int, cells: int) -> Tensor:
    """Resample maps of the valid parts onto a square grid of ``cells`` over the padded frame.

    Cells outside the valid part repeat its edge.
    """
    centres_h = (torch.arange(cells, device=sizes_B2.device) + 0.5) * (frame / cells)
    y_Bh, x_Bw = (2 * centres_h / sizes_B2[:, axis, None] - 1 for axis in (0, 1))
    shape = (sizes_B2.shape[0], cells, cells)  # len() would fix the batch size of a graph
    grid_Bhw2 = torch.stack([x_Bw[:, None].expand(shape), y_Bh[:, :, None].expand(shape)], dim=-1)
    return F.grid_sample(
        map_BDhw, grid_Bhw2.to(map_BDhw.dtype), padding_mode="border", align_corners=False
    )


class TowerReader(nn.Module):
    """An image tower with its own keys under ``visual.``, on padded frames."""

    pixel_mean_311: Tensor
    pixel_std_311: Tensor

    def __init__(self, visual: Tower, text: TextConfig) -> None:
        super().__init__()
        self.visual, self.filter = visual, text.filter or BICUBIC
        mean_311, std_311 = pixel_statistics(text)
        self.register_buffer("pixel_mean_311", mean_311, False)
        self.register_buffer("pixel_std_311", std_311, False)

    def read(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the patches and the whole of the valid parts, as ``read_tower`` does."""
        return read_tower(self.visual, self.clip_input(pixels_B3SS, sizes_B2))

    def clip_input(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        """Crop the valid parts, resize each to the tower's input and normalise as CLIP does."""
        pixels_B3HW = resize_valid(pixels_B3SS, sizes_B2, self.visual.image_size, self.filter)
        normalised_B3HW = (pixels_B3HW - self.pixel_mean_311) / self.pixel_std_311
        patches = next(layer for layer in self.modules() if isinstance(layer, nn.Conv2d))
        return normalised_B3HW.to(patches.weight.dtype)


class PairClipHead(TowerReader):
    """A published image tower as the CLIP head."""

    reads_pixels = True

    def __init__(self, text: TextConfig) -> None:
        super().__init__(build_image_tower(text), text)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a grid over the padded frame and the whole picture; all of length 1 along D.

        Args:
            pixels_B3SS: padded frames, RGB, float, 0..255.
            sizes_B2: int64 (height, width) in pixels of each frame's valid, top-left part.

        Returns:
            ``dense_BDhw`` (cells outside the valid part repeat its edge) and ``pooled_BD``.
        """
        dense_BDhw, pooled_BD = self.read(pixels_B3SS, sizes_B2)
        # Twice the resolution of the map, so that the short side of a 2:1 picture loses none.
        cells = 2 * max(dense_BDhw.shape[-2:])
        return lay_over_frame(dense_BDhw, sizes_B2, pixels_B3SS.shape[-1], cells), pooled_BD


def build_image_tower(text: TextConfig) -> Tower:
    """Build the image tower beside a text tower, with random weights.

    Raises CheckpointError unless it is one of a family's ``trunks``.
    """
    if text.image is not None:
        own: Tower = TOWERS[text.tower].module("network").image_tower(text)
        return own
    tower = build_tower(text)
    trunk = tower.trunk if isinstance(tower, TimmModel) else tower
    known = [family for family in FAMILIES if family.trunks]
    if not any(type(trunk).__name__ in family.trunks for family in known):
        raise CheckpointError(
            f"the image tower of {text.model!r} is no ViT of "
            f"{' or '.join(family.title for family in known)}, which a pair needs: use for example "
            f"{' or '.join(family.example for family in known)}"
        )
    return tower
