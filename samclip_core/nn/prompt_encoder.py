"""SAM's prompt encoder without branches, so that it can be exported to a graph.

P prompts, N points, D width, h w grid, m side of a low-resolution mask.
"""

import torch
from segment_anything.modeling import prompt_encoder
from torch import Tensor


class PromptEncoder(prompt_encoder.PromptEncoder):
    """SAM's prompt encoder for square frames, with unchanged state-dict keys.

    The inherited ``forward`` is SAM's own, which training calls.
    """

    def embed(
        self, points_PN2: Tensor, labels_PN: Tensor, masks_P1mm: Tensor, has_mask_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of a ``samclip_core.engine.base.PromptBatch``.

        Returns ``sparse_PND`` and ``dense_PDhw``, equal to those of ``forward``.
        """
        return self._tokens(points_PN2, labels_PN), self._dense(masks_P1mm, has_mask_P)

    def _tokens(self, points_PN2: Tensor, labels_PN: Tensor) -> Tensor:
        # The formula of PositionEmbeddingRandom.forward_with_coords, which assigns to slices.
        positions_PND = self.pe_layer._pe_encoding((points_PN2 + 0.5) / self.input_image_size[0])
        tables = (self.not_a_point_embed, *self.point_embeddings)
        kinds_KD = torch.cat([table.weight for table in tables])  # by label + 1
        is_point_PN1 = (labels_PN >= 0)[..., None]
        return positions_PND * is_point_PN1 + kinds_KD[labels_PN + 1]

    def _dense(self, masks_P1mm: Tensor, has_mask_P: Tensor) -> Tensor:
        masks_PDhw = self.mask_downscaling(masks_P1mm)
        no_mask_1D11 = self.no_mask_embed.weight[..., None, None]
        return torch.where(has_mask_P[:, None, None, None] > 0, masks_PDhw, no_mask_1D11)

    def positions(self) -> Tensor:
        """Return ``get_dense_pe()``, ``1Dhw``, from operations that export to a small graph."""
        h, w = self.image_embedding_size
        like = self.not_a_point_embed.weight
        y_h, x_w = ((torch.arange(n, device=like.device) + 0.5) / n for n in (h, w))
        grid_hw2 = torch.stack([x_w.expand(h, w), y_h[:, None].expand(h, w)], dim=-1)
        positions_hwD = self.pe_layer._pe_encoding(grid_hw2.to(like.dtype))
        return positions_hwD.permute(2, 0, 1)[None]
