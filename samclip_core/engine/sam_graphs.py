"""Export the mask half of a checkpoint as the two ONNX graphs that tools for SAM read.

The decoder has the inputs and outputs of segment_anything's own export script, the encoder those of
samexporter. The tools take every model's frame for ``FRAME`` pixels: these graphs accept points in
that frame, whatever the side S of the checkpoint's. H W pixels of a picture, N points, D width,
h w grid, m side of a low-resolution mask.
"""

from types import SimpleNamespace

import onnx_ir as ir
import torch
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from samclip_core.config import SamClipConfig
from samclip_core.engine.graphs import MaskDecoder, trace
from samclip_core.nn.network import SamClipNet
from samclip_core.nn.vit import PATCH, with_positions

FRAME = 1024
"""Side of the frame to which tools scale points, in pixels."""


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


class _Decoder(SamOnnxModel):
    """segment_anything's decoder for export, for any frame, kind and aspect ratio of the picture.

    The original freezes the crop of the padding at the ratio of the picture that it was traced
    with.
    """

    def __init__(self, net: SamClipNet, side: int) -> None:
        parts = {"mask_decoder": net.mask_decoder, "image_encoder": SimpleNamespace(img_size=side)}
        super().__init__(SimpleNamespace(**parts), return_single_mask=True)
        self.decoder, self.mask_size = MaskDecoder(net), net.prompt_encoder.mask_input_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer one prompt by its best mask, as ``SamOnnxModel`` does."""
        size_2 = orig_im_size.long()
        scale_xy = (_fitted(size_2, self.img_size) / _fitted(size_2, FRAME)).flip(0)
        low_1Mmm, iou_1M = self.decoder(
            image_embeddings,
            torch.zeros(1, dtype=torch.int64),
            point_coords * scale_xy,
            point_labels.long(),
            # The edge has no flag: no mask is one of zeros.
            F.interpolate(mask_input * has_mask_input, self.mask_size, mode="bilinear"),
            has_mask_input,
        )
        points = torch.ones_like(point_labels).sum()  # the exporter has no shapes as floats
        low_11mm, iou_11 = self.select_masks(low_1Mmm, iou_1M, points)
        return self.mask_postprocessing(low_11mm, size_2), iou_11, low_11mm

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Enlarge masks to the frame, remove its padding, and enlarge the rest to the original."""
        h, w = _fitted(orig_im_size, self.img_size).tolist()
        original_hw = orig_im_size.tolist()
        for side in (h, w, *original_hw):
            torch._check(side >= 1)
        for side in (h, w):
            torch._check(side <= self.img_size)
        frame = F.interpolate(masks, (self.img_size, self.img_size), mode="bilinear")
        return F.interpolate(frame[..., :h, :w], original_hw, mode="bilinear")


def _fitted(size_2: Tensor, side: int) -> Tensor:
    """Return a picture's (height, width) in a frame, as ``Geometry`` computes it."""
    longest = size_2.max()
    return ((2 * size_2 * side + longest) // (2 * longest)).clamp(min=1)


def encoder(net: SamClipNet, config: SamClipConfig) -> ir.Model:
    """Export ``input_image`` float H×W×3 → ``image_embeddings``."""
    inputs = {"input_image": torch.zeros(300, 200, 3)}
    shapes = {"input_image": {0: Dim("image_height"), 1: Dim("image_width")}}
    return trace(_Encoder(net, config.image_size), inputs, ("image_embeddings",), shapes)


def decoder(net: SamClipNet, config: SamClipConfig) -> ir.Model:
    """Export the decoder; points are in a frame of ``FRAME`` pixels, masks of the original size."""
    grid, points = config.grid, Dim("num_points")
    inputs = {
        "image_embeddings": torch.zeros(1, config.embed_dim, grid, grid),
        "point_coords": torch.zeros(1, 3, 2),
        "point_labels": torch.tensor([[1.0, 0.0, -1.0]]),
        "mask_input": torch.zeros(1, 1, FRAME // 4, FRAME // 4),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([300.0, 200.0]),
    }
    shapes = {
        **{name: {} for name in inputs},
        "point_coords": {1: points},
        "point_labels": {1: points},
        "mask_input": {2: Dim("mask_height"), 3: Dim("mask_width")},
    }
    outputs = ("masks", "iou_predictions", "low_res_masks")
    return trace(_Decoder(net, config.prompt_size), inputs, outputs, shapes)
