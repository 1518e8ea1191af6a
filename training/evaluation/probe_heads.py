"""Heads trained on a frozen encoder's feature map: ``B×D×h×w`` to logits ``B×C×h×w``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

PYRAMID = (1, 2, 3, 6)  # cells per side of each pooled map (PSPNet, section 3.2)
HIDDEN = 256


class PyramidHead(nn.Module):
    """PSPNet's head: classifies the map concatenated with context pooled at four scales."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        part = HIDDEN // len(PYRAMID)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(width, part, 1), nn.ReLU())
            for side in PYRAMID
        )
        self.classify = nn.Sequential(
            nn.Conv2d(width + len(PYRAMID) * part, HIDDEN, 3, padding=1, bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(HIDDEN, classes, 1),
        )

    def forward(self, map_BDhw: Tensor) -> Tensor:
        context = [
            F.interpolate(level(map_BDhw), map_BDhw.shape[-2:], mode="bilinear")
            for level in self.levels
        ]
        return self.classify(torch.cat([map_BDhw, *context], dim=1))


def _linear(width: int, classes: int) -> nn.Module:
    return nn.Conv2d(width, classes, 1)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": _linear,
    "deeplab": DeepLabHead,
    "psp": PyramidHead,
}
