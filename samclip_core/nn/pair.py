"""The ``pair`` kind: SAM's image encoder and CLIP's image tower as parts of one network.

Shape letters: B images, H W pixels, S side of the model frame, h w grid, N tokens, D width.
"""

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.nn.clip_model import BICUBIC, pixel_statistics
from samclip_core.nn.clip_tower import build_tower, lay_over_frame, read_tower, resize_valid
from samclip_core.nn.encoder import EncoderOutput
from samclip_core.nn.vit import ImageEncoder


class PairEncoder(ImageEncoder):
    """SAM's image encoder, which passes the pixels to CLIP as tokens."""

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode as ``ImageEncoder`` does; ``tokens_BDhw`` are the pixels."""
        return EncoderOutput(super().forward(pixels_B3SS, sizes_B2).sam_BDhw, pixels_B3SS)


class PairClipHead(nn.Module):
    """CLIP's own image tower as the CLIP head, with open_clip's keys under ``visual.``."""

    pixel_mean_311: Tensor
    pixel_std_311: Tensor

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        self.visual, self.filter = build_image_tower(text), text.filter or BICUBIC
        mean_311, std_311 = pixel_statistics(text)
        self.register_buffer("pixel_mean_311", mean_311, False)
        self.register_buffer("pixel_std_311", std_311, False)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a grid over the padded frame and the whole picture; all of length 1 along D.

        Args:
            pixels_B3SS: padded frames, RGB, float, 0..255.
            sizes_B2: int64 (height, width) in pixels of each frame's valid, top-left part.

        Returns:
            ``dense_BDhw`` (cells outside the valid part repeat its edge) and ``pooled_BD``.
        """
        dense_BDhw, pooled_BD = read_tower(self.visual, self.clip_input(pixels_B3SS, sizes_B2))
        # Twice the resolution of the map, so that the short side of a 2:1 picture loses none.
        cells = 2 * max(dense_BDhw.shape[-2:])
        return lay_over_frame(dense_BDhw, sizes_B2, pixels_B3SS.shape[-1], cells), pooled_BD

    def clip_input(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        """Crop the valid parts, resize each to CLIP's square and normalise as CLIP does."""
        pixels_B3HW = resize_valid(pixels_B3SS, sizes_B2, self.visual.image_size, self.filter)
        normalised_B3HW = (pixels_B3HW - self.pixel_mean_311) / self.pixel_std_311
        patches = next(layer for layer in self.visual.modules() if isinstance(layer, nn.Conv2d))
        return normalised_B3HW.to(patches.weight.dtype)


def build_image_tower(text: TextConfig) -> VisionTransformer | TimmModel:
    """Build the image tower of an open_clip model, with random weights.

    Raises CheckpointError unless it is a ViT of CLIP or SigLIP, for example of ViT-B-32.
    """
    tower = build_tower(text)
    trunk = tower.trunk if isinstance(tower, TimmModel) else tower
    if not isinstance(trunk, VisionTransformer | TimmVisionTransformer):
        raise CheckpointError(
            f"the image tower of {text.model!r} is no ViT of CLIP or SigLIP, which a pair needs: "
            "use for example ViT-B-32, ViT-L-14 or ViT-B-16-SigLIP2"
        )
    return tower
