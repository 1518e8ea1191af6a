"""``pair``: SAM's image encoder and CLIP's image tower side by side, as the parts of one network.

Shape letters: B images, H W pixels, S side of the model frame, h w grid, N tokens, D width.
"""

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.encoder import EncoderOutput
from samclip_core.errors import CheckpointError
from samclip_core.vit import ImageEncoder


class PairEncoder(ImageEncoder):
    """SAM's image encoder, which hands the pixels on: they are the tokens that CLIP reads."""

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """As ``ImageEncoder``, with ``tokens_BDhw`` the pixels themselves."""
        return EncoderOutput(super().forward(pixels_B3SS, sizes_B2).sam_BDhw, pixels_B3SS)


class PairClipHead(nn.Module):
    """CLIP's own image tower in the place of Head_CLIP; open_clip's keys, under ``visual.``."""

    pixel_mean_311: Tensor
    pixel_std_311: Tensor

    def __init__(self, clip_model: str) -> None:
        super().__init__()
        self.visual = build_image_tower(clip_model)
        mean_3, std_3 = torch.tensor([open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD])
        self.register_buffer("pixel_mean_311", 255 * mean_3.view(3, 1, 1), False)
        self.register_buffer("pixel_std_311", 255 * std_3.view(3, 1, 1), False)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a grid over the padded frame and the whole picture; all of length 1 along D.

        Args:
            pixels_B3SS: padded frames, RGB, float, 0..255.
            sizes_B2: int64 (height, width) in pixels of each frame's valid, top-left part.

        Returns:
            ``dense_BDhw`` (cells outside the valid part repeat its edge) and ``pooled_BD``.
        """
        dense_BDhw, pooled_BD = self._encode(self.clip_input(pixels_B3SS, sizes_B2))
        return _lay_over_frame(dense_BDhw, sizes_B2, pixels_B3SS.shape[-1]), pooled_BD

    def clip_input(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        """Cut out the valid parts, resize each to CLIP's square and normalise as CLIP does."""
        resized = [
            F.interpolate(
                pixels_3SS[None, :, :height, :width],
                self.visual.image_size,
                mode="bicubic",
                antialias=True,
            )
            for pixels_3SS, (height, width) in zip(pixels_B3SS, sizes_B2.tolist(), strict=True)
        ]
        # Bicubic overshoots at edges; an 8-bit picture, which CLIP was trained on, cannot.
        pixels_B3HW = torch.cat(resized).clamp(0, 255)
        normalised_B3HW = (pixels_B3HW - self.pixel_mean_311) / self.pixel_std_311
        return normalised_B3HW.to(self.visual.conv1.weight.dtype)

    def _encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Give dense and pooled embeddings over CLIP's own input.

        The dense map is read as MaskCLIP reads it: in the last block each patch attends only to
        itself, so its value stays where it stands; then ``ln_post`` and ``proj``, as for the
        class token. The picture's own attention there gathers what is global, not local.
        """
        *_, last_block = self.visual.transformer.resblocks
        out = self.visual.forward_intermediates(
            pixels_B3HW, indices=[len(self.visual.transformer.resblocks) - 2], output_fmt="NLC"
        )
        (patches_BND,) = out["image_intermediates"]
        only_itself_NN = torch.full((patches_BND.shape[1],) * 2, -torch.inf).fill_diagonal_(0)
        patches_BND = last_block(patches_BND, attn_mask=only_itself_NN.to(patches_BND.device))
        dense_BND = F.normalize(self.visual.ln_post(patches_BND) @ self.visual.proj, dim=-1)
        dense_BDhw = dense_BND.transpose(1, 2).unflatten(2, self.visual.grid_size)
        return dense_BDhw, F.normalize(out["image_features"], dim=-1)


def build_image_tower(clip_model: str) -> VisionTransformer:
    """Build the image tower of an open_clip architecture, with random weights.

    Raises CheckpointError unless it is one of CLIP's own ViTs, for example ViT-B-32 or ViT-L-14.
    """
    if clip_model not in open_clip.list_models():
        raise CheckpointError(
            f"open_clip has no architecture {clip_model!r}: give one of open_clip.list_models(), "
            "for example ViT-B-32 or ViT-L-14"
        )
    architecture = open_clip.get_model_config(clip_model)
    # The whole model would be built, and its text tower thrown away, by open_clip.create_model.
    tower = _build_vision_tower(
        architecture["embed_dim"], architecture["vision_cfg"], architecture.get("quick_gelu", False)
    )
    if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None:
        raise CheckpointError(
            f"the image tower of {clip_model!r} is not one of CLIP's own ViTs: its patches cannot "
            "be read against texts. Use for example ViT-B-32, ViT-B-16 or ViT-L-14"
        )
    return tower


def _lay_over_frame(dense_BDhw: Tensor, sizes_B2: Tensor, frame: int) -> Tensor:
    """Resample a map of the valid part onto a square grid over the whole padded frame.

    The grid is twice as fine as the map, so that the short side of a 2:1 picture loses nothing.
    """
    cells = 2 * max(dense_BDhw.shape[-2:])
    centres_h = (torch.arange(cells, device=sizes_B2.device) + 0.5) * (frame / cells)
    y_Bh, x_Bw = (2 * centres_h / sizes_B2[:, axis, None] - 1 for axis in (0, 1))
    shape = (len(sizes_B2), cells, cells)
    grid_Bhw2 = torch.stack([x_Bw[:, None].expand(shape), y_Bh[:, :, None].expand(shape)], dim=-1)
    laid_BDhw = F.grid_sample(
        dense_BDhw, grid_Bhw2.to(dense_BDhw.dtype), padding_mode="border", align_corners=False
    )
    return F.normalize(laid_BDhw, dim=1)
