"""Train a probe's head on a frozen encoder: linear, DeepLab-v3's or PSPNet's.

Every epoch, each photograph is cut at random and encoded again. No features are stored: those of
ImageNet would take hundreds of gigabytes.

B images per step, S side of the frame, D width, h×w grid, C classes, t side of a label map.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from samclip_core.geometry import Geometry
from samclip_core.io.image import ImageLimits, decode
from samclip_core.nn.vit import valid_mask
from training.data.frames import Window, resized
from training.evaluation.layouts import Mapped
from training.evaluation.measures import class_rows
from training.evaluation.parallel import progress
from training.evaluation.suite import Head, limited

LABEL_STRIDE = 4  # pixels of the frame per side of a label cell
IGNORED = -1
SCALES = (0.5, 2.0)  # of the longer side to the frame, as mmsegmentation's recipes for VOC and ADE
AREAS = (0.08, 1.0)  # of a crop to the photograph, as MAE's linear probing (arXiv 2111.06377)
RATIOS = (3 / 4, 4 / 3)  # of a crop's sides
SCALED_BY = 256  # photographs whose features set the scale of the channels
READERS = 8  # processes that decode for a GPU

Cut = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""``pixels_3SS``, the (height, width) that the photograph covers, class indices ``labels_tt``."""
Draw = Callable[[NDArray[np.uint8], NDArray[np.integer], int, np.random.Generator], Cut]


class Cuts(Dataset[Cut]):
    """One random cut of each photograph per epoch; it depends on the seed, epoch and index."""

    def __init__(
        self, pictures: Sequence[Mapped], values: list[int], size: int, draw: Draw, seed: int
    ) -> None:
        """Cut frames of ``size`` pixels; classes are indices into ``values``."""
        self.pictures, self.values = pictures, values
        self.size, self.draw, self.seed, self.epoch = size, draw, seed, 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Cut:
        picture = self.pictures[index]
        random = np.random.default_rng((self.seed, self.epoch, index))
        image_HW3 = decode(picture.read(), ImageLimits())
        return self.draw(image_HW3, class_rows(picture.labels(), self.values), self.size, random)


def draw_window(
    image_HW3: NDArray[np.uint8],
    row_HW: NDArray[np.integer],
    size: int,
    random: np.random.Generator,
) -> Cut:
    """Scale a photograph at random, cut a window of the frame out of it, and flip every second."""
    window = Window.draw(row_HW.shape, size, SCALES, random)
    labels_tt = window.labels(row_HW, size // min(LABEL_STRIDE, size), IGNORED)
    pixels_3SS = window.pixels(image_HW3).transpose(2, 0, 1)
    return pixels_3SS, np.array(window.valid), labels_tt.astype(np.int64)


def draw_crop(
    image_HW3: NDArray[np.uint8],
    row_11: NDArray[np.integer],
    size: int,
    random: np.random.Generator,
) -> Cut:
    """Scale a random crop of a photograph to the whole frame, and flip every second one."""
    height, width = image_HW3.shape[:2]
    area = height * width * random.uniform(*AREAS)
    ratio = np.exp(random.uniform(*np.log(RATIOS)))
    rows = min(height, max(1, round(np.sqrt(area / ratio))))
    columns = min(width, max(1, round(np.sqrt(area * ratio))))
    top = int(random.integers(height - rows + 1))
    left = int(random.integers(width - columns + 1))
    crop_HW3 = image_HW3[top : top + rows, left : left + columns]
    image_SS3 = resized(crop_HW3, (size, size))
    if random.random() < 0.5:
        image_SS3 = image_SS3[:, ::-1]
    pixels_3SS = np.ascontiguousarray(image_SS3.transpose(2, 0, 1))
    return pixels_3SS, np.array([size, size]), row_11.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a head is trained: AdamW with a rate that decays to zero, cuts and order by ``seed``."""

    epochs: int
    batch: int
    draw: Draw
    rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0
    head: Head = "linear"


@dataclass(frozen=True)
class FrozenEncoder:
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
    def measured(cls, frozen: FrozenEncoder, pictures: Sequence[Mapped]) -> "Scale":
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


class PyramidHead(nn.Module):
    """PSPNet's head (arXiv 1612.01105): means over 1, 4, 9 and 36 regions beside each cell."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        inner, part = 512, 128
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(width, part, 1), nn.ReLU())
            for side in (1, 2, 3, 6)
        )
        self.decide = nn.Sequential(
            nn.Conv2d(width + 4 * part, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(inner, classes, 1),
        )

    def forward(self, x_BDhw: Tensor) -> Tensor:
        side = x_BDhw.shape[-2:]
        levels = [F.interpolate(f(x_BDhw), side, mode="bilinear") for f in self.levels]
        logits_BChw: Tensor = self.decide(torch.cat([x_BDhw, *levels], dim=1))
        return logits_BChw


HEADS: dict[Head, Callable[[int, int], nn.Module]] = {
    "linear": partial(nn.Conv2d, kernel_size=1),
    "deeplab": DeepLabHead,
    "psp": PyramidHead,
}


def fit_head(
    frozen: FrozenEncoder, pictures: Sequence[Mapped], values: list[int], fit: Fit
) -> tuple[Scale, nn.Module]:
    """Train a head to tell ``values`` apart; return the features' scale and the head.

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
        torch.manual_seed(fit.seed)
        head = HEADS[fit.head](len(scale.mean_D11), len(values)).to(frozen.device)
        learning = torch.optim.AdamW(head.parameters(), fit.rate, weight_decay=fit.weight_decay)
        steps = fit.epochs * len(loader)
        schedule = torch.optim.lr_scheduler.PolynomialLR(learning, steps, power=0.9)
        for cuts.epoch in progress(range(fit.epochs), "epochs of the head"):
            for pixels_B3SS, sizes_B2, labels_Btt in loader:
                x_BDhw = scale.apply(*frozen.features(pixels_B3SS, sizes_B2))
                learning.zero_grad()
                _loss(head(x_BDhw), labels_Btt.to(frozen.device)).backward()
                learning.step()
                schedule.step()
    return scale, head.eval().requires_grad_(False)


def _loss(logits_BChw: Tensor, labels_Btt: Tensor) -> Tensor:
    logits_BCtt = F.interpolate(logits_BChw, labels_Btt.shape[-2:], mode="bilinear")
    loss = F.cross_entropy(logits_BCtt, labels_Btt, ignore_index=IGNORED, reduction="sum")
    return loss / (labels_Btt != IGNORED).sum().clamp(min=1)
