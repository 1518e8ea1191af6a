"""Convolutions that clip what they have computed: the same results, written once.

B images, C channels, h w grid.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F


class ClippedConv2d(nn.Module):
    """A convolution and the ReLU6 behind it, in one pass of oneDNN over what it gives.

    For networks that learn no more, on a CPU. Takes over the weights of ``conv``; timm's padding
    like TensorFlow's becomes part of them.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.padding = conv.weight, conv.bias, conv.padding
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        if isinstance(conv, Conv2dSame):
            self.weight, self.padding = _padded_evenly(conv)

    def forward(self, x_BChw: Tensor) -> Tensor:
        clipped_BChw: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_BChw.to(self.weight.dtype),
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            "hardtanh",
            [0.0, 6.0],
            "",
        )
        return clipped_BChw


def _padded_evenly(conv: Conv2dSame) -> tuple[nn.Parameter, tuple[int, ...]]:
    """A kernel that needs as much padding before as behind, and how much that is.

    TensorFlow pads a side that stride 2 halves by one more behind. With a row and a column of
    zeros before the kernel the results are the same, and nothing is copied into a larger frame.
    """
    if conv.stride != (2, 2) or any(side % 2 == 0 for side in conv.kernel_size):
        raise ValueError(f"{conv}: expected stride 2 and an odd kernel")
    weight = F.pad(conv.weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
    padding = tuple((side - 1) // 2 for side in conv.kernel_size)
    return nn.Parameter(weight, requires_grad=False), padding


def clip_in_convolutions(module: nn.Module) -> None:
    """Put every ReLU6 of ``module`` into the convolution right before it, where oneDNN can.

    For a module on the CPU whose norms are folded and whose weights have their dtype.
    """
    before = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU6) and _onednn_computes(before[1]):
            setattr(module, before[0], ClippedConv2d(before[1]))
            setattr(module, name, nn.Identity())
        else:
            clip_in_convolutions(child)
        before = name, child


def _onednn_computes(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(layer, nn.Conv2d) or not torch.backends.mkldnn.is_available():
        return False
    computes: dict[torch.dtype, Callable[[], bool]] = {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return layer.weight.dtype in computes and computes[layer.weight.dtype]()
