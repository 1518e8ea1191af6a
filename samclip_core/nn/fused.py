"""Faster equivalents of layers: fused kernels, and norms folded into convolutions.

P prompts, N queries, K keys, H heads, D width of a head, C channels, h w grid.
"""

from collections.abc import Callable

import torch
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
