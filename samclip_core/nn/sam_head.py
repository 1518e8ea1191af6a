"""SAM's prompt encoder and mask decoder for many images at once, in fused kernels.

Shape letters: B images, P prompts, N prompt tokens, D width, h w embedding grid, M masks, m side of
a low-resolution mask, C channels of any map.
"""

from collections.abc import Callable

import torch
from segment_anything.modeling import TwoWayTransformer, mask_decoder, prompt_encoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FusedAttention(nn.Module):
    """The two-way transformer's attention with ``scaled_dot_product_attention``."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.q_proj = attention.q_proj
        self.k_proj = attention.k_proj
        self.v_proj = attention.v_proj
        self.out_proj = attention.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class FusedLayerNorm2d(LayerNorm2d):
    """Layer norm over the channels of a map in one kernel.

    Channels-last maps, such as the decoder's, are not copied. bfloat16 stays bfloat16, which the
    original converts to float32.
    """

    def __init__(self, norm: LayerNorm2d):
        super().__init__(norm.weight.shape[0], norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x_PChw: Tensor) -> Tensor:
        x_PhwC = x_PChw.permute(0, 2, 3, 1)
        normed_PhwC = F.layer_norm(x_PhwC, self.weight.shape, self.weight, self.bias, self.eps)
        return normed_PhwC.permute(0, 3, 1, 2)


def use_fused(module: nn.Module) -> None:
    """Replace segment_anything's layers in ``module`` by fused ones with the same keys."""
    replacements: dict[type[nn.Module], Callable[..., nn.Module]] = {
        Attention: FusedAttention,
        LayerNorm2d: FusedLayerNorm2d,
    }
    for name, child in list(module.named_children()):
        if type(child) in replacements:
            setattr(module, name, replacements[type(child)](child))
        else:
            use_fused(child)


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert weights to ``dtype`` once; autocast would convert them again for every image."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm of ``module`` into the convolution right before it.

    For a trained module in evaluation mode: its keys change. timm's norms include an activation,
    which remains.
    """
    before = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_norms(child)
        before = name, child


class PromptEncoder(prompt_encoder.PromptEncoder):
    """SAM's prompt encoder for square frames, with unchanged state-dict keys."""

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
            image_embeddings_BDhw: embeddings of the images; channels after the first D are for
                ``_paint``.
            image_pe_1Dhw: the prompt encoder's ``get_dense_pe()``.
            sparse_PND: embedded points and boxes, the same number of tokens for each prompt.
            dense_PDhw: embedded mask prompts; channels after the first D are for ``_paint``.
            image_index_P: int64, the row of each prompt's image in ``image_embeddings_BDhw``.

        Returns:
            ``logits_PMhw`` (M = 4, four times the embedding's grid) and predicted ``iou_PM``; some
            decoders' has a column more, the score of an object.
        """
        width, last = self.transformer_dim, 1 + self.num_mask_tokens
        own_PND = self._own_tokens().expand(sparse_PND.shape[0], -1, -1)
        tokens_PND = torch.cat([own_PND, sparse_PND], dim=1)
        maps_PDhw = image_embeddings_BDhw[image_index_P]
        image_PDhw = maps_PDhw[:, :width] + dense_PDhw[:, :width]

        hidden_PND, keys_PLD = self.transformer(image_PDhw, image_pe_1Dhw, tokens_PND)

        # A transpose and a view would give a single prompt strides that convolutions do not
        # recognise as channels last.
        keys_PDhw = keys_PLD.unflatten(1, image_PDhw.shape[-2:]).permute(0, 3, 1, 2)
        more_PDhw = (maps_PDhw if maps_PDhw.shape[1] > width else dense_PDhw)[:, width:]
        logits_PMhw = self._paint(hidden_PND[:, 1:last], keys_PDhw, more_PDhw)
        return logits_PMhw, self._scores(hidden_PND)

    def _own_tokens(self) -> Tensor:
        """Return the tokens before those of a prompt, N×D: of the IoU, then of each mask."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def _scores(self, hidden_PND: Tensor) -> Tensor:
        return self.iou_prediction_head(hidden_PND[:, 0])

    def _paint(self, mask_tokens_PMD: Tensor, keys_PDhw: Tensor, more_PDhw: Tensor) -> Tensor:
        """Weight the channels of the upscaled picture by a kernel from each mask's token."""
        upscaled_PDhw = self._upscaled(keys_PDhw, more_PDhw)
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

    def _upscaled(self, keys_PDhw: Tensor, _: Tensor) -> Tensor:
        return self.output_upscaling(keys_PDhw)
