"""SAM's mask decoder for the prompts of many images in one call.

Shape letters: B images, P prompts, N prompt tokens, D width, h w embedding grid, M masks.
"""

import torch
from segment_anything.modeling import TwoWayTransformer, mask_decoder
from torch import Tensor

from samclip_core.nn.fused import use_fused


class MaskDecoder(mask_decoder.MaskDecoder):
    """SAM's mask decoder with its state-dict keys; ``decode`` batches over images.

    The inherited ``forward`` is SAM's own, for one image and its prompts.
    """

    def __init__(self, width: int = 256, depth: int = 2, heads: int = 8, mlp_dim: int = 2048):
        super().__init__(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=depth, embedding_dim=width, num_heads=heads, mlp_dim=mlp_dim
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        )
        use_fused(self)

    def decode(
        self,
        image_embeddings_BDhw: Tensor,
        image_pe_1Dhw: Tensor,
        sparse_PND: Tensor,
        dense_PDhw: Tensor,
        image_index_P: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predict all four masks of every prompt: the single one, then the three alternatives.

        Args:
            image_embeddings_BDhw: embeddings of the images.
            image_pe_1Dhw: the prompt encoder's ``get_dense_pe()``.
            sparse_PND: embedded points and boxes, the same number of tokens for each prompt.
            dense_PDhw: embedded mask prompts; channels after the first D are for ``_paint``.
            image_index_P: int64, the row of each prompt's image in ``image_embeddings_BDhw``.

        Returns:
            ``logits_PMhw`` (M = 4, four times the embedding's grid) and predicted ``iou_PM``.
        """
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        output_tokens = output_tokens.expand(sparse_PND.shape[0], -1, -1)
        tokens_PND = torch.cat([output_tokens, sparse_PND], dim=1)
        width = image_embeddings_BDhw.shape[1]
        image_PDhw = image_embeddings_BDhw[image_index_P] + dense_PDhw[:, :width]

        hidden_PND, keys_PLD = self.transformer(image_PDhw, image_pe_1Dhw, tokens_PND)

        mask_tokens_PMD = hidden_PND[:, 1 : 1 + self.num_mask_tokens]
        # A transpose and a view would give a single prompt strides that convolutions do not
        # recognise as channels last.
        keys_PDhw = keys_PLD.unflatten(1, image_PDhw.shape[-2:]).permute(0, 3, 1, 2)
        logits_PMhw = self._paint(mask_tokens_PMD, keys_PDhw, dense_PDhw[:, width:])
        return logits_PMhw, self.iou_prediction_head(hidden_PND[:, 0])

    def _paint(self, mask_tokens_PMD: Tensor, keys_PDhw: Tensor, _: Tensor) -> Tensor:
        """Weight the channels of the upscaled picture by a kernel from each mask's token."""
        upscaled_PDhw = self.output_upscaling(keys_PDhw)
        kernels_PMD = torch.stack(
            [
                mlp(tokens_PD)
                for mlp, tokens_PD in zip(
                    self.output_hypernetworks_mlps, mask_tokens_PMD.unbind(1), strict=True
                )
            ],
            dim=1,
        )
        return torch.einsum("pmd,pdhw->pmhw", kernels_PMD, upscaled_PDhw)
