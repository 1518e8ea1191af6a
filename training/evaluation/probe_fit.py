"""Train a probe's heads on a frozen encoder.

Every epoch, each photograph is cut at random and encoded again. No features are stored: those of
ImageNet would take hundreds of gigabytes. All heads learn from the same features, so several heads
cost one pass of the encoder.

B images per step, D width, h×w grid, C classes, t side of a label map.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from samclip_core.geometry import Geometry
from samclip_core.io.image import ImageLimits, decode
from samclip_core.nn.encoder import valid_mask
from training.evaluation.layouts import Mapped
from training.evaluation.probe_cuts import IGNORED, Cuts, Draw
from training.evaluation.probe_heads import HEADS
from training.evaluation.suite import limited, progress

SCALED_BY = 256  # photographs whose features set the scale of the channels
READERS = 8  # processes that decode for a GPU


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How heads are trained: AdamW with a rate that decays to zero, cuts and order by ``seed``."""

    epochs: int
    batch: int
    draw: Draw
    rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder: ``encode(pixels_B3SS, sizes_B2)`` returns ``map_BDhw``.

    ``pooled``: its features are the mean over the cells inside the photograph, a map of one cell.
    """

    size: int
    device: torch.device
    encode: Callable[[Tensor, Tensor], Tensor]
    pooled: bool = False

    @torch.no_grad()
    def features(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``map_BDhw`` and the cells ``valid_B1hw`` inside the photographs."""
        map_BDhw = self.encode(
            pixels_B3SS.to(self.device).float(), sizes_B2.to(self.device)
        ).float()
        side = map_BDhw.shape[-1]
        valid_B1hw = valid_mask(sizes_B2.to(self.device), side, side, self.size // side)[:, None]
        if not self.pooled:
            return map_BDhw, valid_B1hw
        sum_BD = (map_BDhw * valid_B1hw).sum(dim=(2, 3))
        mean_BD11 = (sum_BD / valid_B1hw.sum(dim=(2, 3)))[:, :, None, None]
        return mean_BD11, valid_B1hw[:, :, :1, :1]

    def whole(self, encoded: bytes) -> tuple[Geometry, Tensor, Tensor]:
        """Return the geometry and the features of a whole photograph, as it is evaluated."""
        image_HW3 = decode(encoded, ImageLimits())
        height, width, _ = image_HW3.shape
        geometry = Geometry(height, width, self.size)
        pixels_13SS = torch.from_numpy(geometry.resize(image_HW3))[None]
        size_12 = torch.tensor([[geometry.input_height, geometry.input_width]])
        return geometry, *self.features(pixels_13SS, size_12)


class Scale(NamedTuple):
    """Mean and deviation per channel, so that one learning rate suits every encoder."""

    mean_D11: Tensor
    deviation_D11: Tensor

    @classmethod
    def measured(cls, frozen: Frozen, pictures: Sequence[Mapped]) -> "Scale":
        """Measure the channels over the cells inside whole photographs."""
        moments = []
        for picture in progress(limited(pictures, SCALED_BY), "scale"):
            _, map_1Dhw, valid_11hw = frozen.whole(picture.read())
            cells_Dn = map_1Dhw[0][:, valid_11hw[0, 0]].double()
            count = torch.full((len(cells_Dn),), cells_Dn.shape[1], device=cells_Dn.device)
            moments.append(torch.stack([cells_Dn.sum(1), cells_Dn.square().sum(1), count]))
        total_D, squares_D, count_D = torch.stack(moments).sum(dim=0)
        mean_D = total_D / count_D
        deviation_D = (squares_D / count_D - mean_D.square()).clamp(min=1e-8).sqrt()
        return cls(*(value.float()[:, None, None] for value in (mean_D, deviation_D)))

    def apply(self, map_BDhw: Tensor, valid_B1hw: Tensor) -> Tensor:
        """Normalise maps to mean 0 and deviation 1; cells outside the image become 0."""
        # Padding may hold any value, so it is replaced, not multiplied.
        normal_BDhw = (map_BDhw - self.mean_D11) / self.deviation_D11
        return normal_BDhw.where(valid_B1hw, normal_BDhw.new_zeros(()))


def fit_heads(
    frozen: Frozen, pictures: Sequence[Mapped], values: list[int], heads: Sequence[str], fit: Fit
) -> tuple[Scale, dict[str, nn.Module]]:
    """Train each head to tell ``values`` apart; return the features' scale and the heads.

    Raises ValueError without pictures.
    """
    if not pictures:
        raise ValueError("no pictures to train a head on")
    scale = Scale.measured(frozen, pictures)
    cuts = Cuts(pictures, values, frozen.size, fit.draw, fit.seed)
    loader = DataLoader(
        cuts,
        batch_size=fit.batch,
        shuffle=True,
        drop_last=len(cuts) >= fit.batch,
        num_workers=min(READERS, os.cpu_count() or 1) if frozen.device.type == "cuda" else 0,
        generator=torch.Generator().manual_seed(fit.seed),
    )
    with torch.random.fork_rng():
        learners = {
            name: _Learner(name, len(scale.mean_D11), len(values), fit, len(loader), frozen.device)
            for name in heads
        }
        for epoch in progress(range(fit.epochs), f"epochs of {', '.join(heads)}"):
            cuts.epoch = epoch
            for pixels_B3SS, sizes_B2, labels_Btt in loader:
                x_BDhw = scale.apply(*frozen.features(pixels_B3SS, sizes_B2))
                for learner in learners.values():
                    learner.step(x_BDhw, labels_Btt.to(frozen.device))
    networks = {name: learner.network for name, learner in learners.items()}
    return scale, {name: net.eval().requires_grad_(False) for name, net in networks.items()}


class _Learner:
    """One head with its optimiser."""

    def __init__(
        self, head: str, width: int, classes: int, fit: Fit, batches: int, device: torch.device
    ) -> None:
        torch.manual_seed(fit.seed)
        self.network = HEADS[head](width, classes).to(device).train()
        parameters = self.network.parameters()
        self.optimiser = torch.optim.AdamW(parameters, fit.rate, weight_decay=fit.weight_decay)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(
            self.optimiser, fit.epochs * batches, power=0.9
        )

    def step(self, x_BDhw: Tensor, labels_Btt: Tensor) -> None:
        """Take one step down the cross-entropy of the labelled cells."""
        logits_BChw = self.network(x_BDhw)
        logits_BCtt = F.interpolate(logits_BChw, labels_Btt.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(logits_BCtt, labels_Btt, ignore_index=IGNORED, reduction="sum")
        self.optimiser.zero_grad()
        (loss / (labels_Btt != IGNORED).sum().clamp(min=1)).backward()
        self.optimiser.step()
        self.schedule.step()
