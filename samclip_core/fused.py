"""Layers that give the same results faster: fused twins, and norms folded into convolutions.

P prompts, N queries, K keys, H heads, D width of a head, C channels, h w grid.
"""

from collections.abc import Callable

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEW = 32  # keys that are read faster as rows of all queries (2,304 of them; edge)


class FusedAttention(nn.Module):
    """The two-way transformer's attention through ``scaled_dot_product_attention``."""

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
        few = q.is_cpu and k.shape[2] <= FEW < q.shape[2]
        if few and torch.is_inference_mode_enabled():  # a training stays the same to the bit
            attended = _of_few(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def _of_few(q_PHND: Tensor, k_PHKD: Tensor, v_PHKD: Tensor) -> Tensor:
    """Attention where many ask few, each key's logits in a row: softmax then runs across rows.

    A CPU's fused call takes three times as long for a prompt's 7 keys.
    """
    scaled_PHKD = k_PHKD * k_PHKD.shape[-1] ** -0.5
    weights_PHKN = (scaled_PHKD @ q_PHND.transpose(-1, -2)).softmax(dim=-2)
    return weights_PHKN.transpose(-1, -2) @ v_PHKD


class FusedLayerNorm2d(LayerNorm2d):
    """Layer norm over the channels of a map in one kernel.

    Nothing is copied where the map lies channels last, as the decoder's do; and bfloat16 stays
    bfloat16, where the original turns it into float32.
    """

    def __init__(self, norm: LayerNorm2d):
        super().__init__(norm.weight.shape[0], norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x_PChw: Tensor) -> Tensor:
        x_PhwC = x_PChw.permute(0, 2, 3, 1)
        normed_PhwC = F.layer_norm(x_PhwC, self.weight.shape, self.weight, self.bias, self.eps)
        return normed_PhwC.permute(0, 3, 1, 2)


class FusedGELU(nn.Module):
    """``gelu`` as a layer."""

    def __init__(self, _: nn.GELU):
        super().__init__()

    def forward(self, x_PChw: Tensor) -> Tensor:
        return gelu(x_PChw)


def gelu(x_PChw: Tensor) -> Tensor:
    """GELU, for a map that lies channels last seen as what it is then: contiguous.

    oneDNN computes that, in half the time of PyTorch's own, and in a twelfth where much lies far
    below zero: what is denormal then costs it nothing.
    """
    x_PhwC = x_PChw.permute(0, 2, 3, 1)
    if torch.is_inference_mode_enabled() and x_PhwC.is_contiguous():
        return F.gelu(x_PhwC).permute(0, 3, 1, 2)
    return F.gelu(x_PChw)  # a training stays the same to the bit


def use_fused(module: nn.Module) -> None:
    """Put the twins, which keep the keys, in place of segment_anything's layers in ``module``."""
    twins: dict[type[nn.Module], Callable[..., nn.Module]] = {
        Attention: FusedAttention,
        LayerNorm2d: FusedLayerNorm2d,
        nn.GELU: FusedGELU,
    }
    for name, child in list(module.named_children()):
        if type(child) in twins:
            setattr(module, name, twins[type(child)](child))
        else:
            use_fused(child)


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of ``module`` that autocast multiplies with in its dtype.

    It would cast them again and again, once an image.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)


def fold_norms(module: nn.Module) -> None:
    """Put every batch norm of ``module`` into the convolution right before it.

    For a module in evaluation mode that has its weights and learns no more: its keys change. A norm
    of timm's, which holds the activation as well, leaves that behind.
    """
    before = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_norms(child)
        before = name, child
