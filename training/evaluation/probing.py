"""Head probing: how well a small head learns on the frozen encoder (paper, tables 3 and 4).

The encoder's maps are computed once per training image, without augmentation, and kept in a
temporary file; only the head is trained, for a fixed number of steps. Classification works the same
way on maps of one cell: the mean over the encoder's map, and a linear head.

N images, B images per step, D width, h×w grid, C classes, t×t cells of a label map.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from samclip_core.geometry import Geometry
from samclip_core.model import SamClip
from samclip_core.nn.encoder import valid_mask
from training.data.annotations import class_names
from training.evaluation import layouts
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import class_rows, confusion, mean_iou
from training.evaluation.probe_heads import HEADS
from training.evaluation.semantic import own_set
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress

LABEL_STRIDE = 4  # pixels of the model frame per side of a label cell
IGNORED = -1

Encode = Callable[[bytes], tuple[Geometry, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a head is trained: AdamW, a rate that decays to zero, batches drawn with ``seed``."""

    steps: int
    batch: int
    rate: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


PIXELS = Fit(steps=500, batch=16)
PICTURES = Fit(steps=2000, batch=256)


class Split(NamedTuple):
    """The sets that heads are trained and evaluated on."""

    train: LabelledSet
    val: LabelledSet


@dataclass(frozen=True, eq=False)
class Cache:
    """A set's maps in a file, and the class index of each label cell (IGNORED: none)."""

    maps_NDhw: NDArray[np.float16]
    valid_N1hw: Tensor
    labels_Ntt: NDArray[np.int16]


class Scale(NamedTuple):
    """Mean and deviation per channel, so that one learning rate suits every encoder."""

    mean_D11: Tensor
    deviation_D11: Tensor

    def apply(self, maps_BDhw: Tensor, valid_B1hw: Tensor) -> Tensor:
        """Normalise maps to mean 0 and deviation 1; cells outside the image become 0."""
        maps_BDhw = maps_BDhw.to(self.mean_D11)
        valid_B1hw = valid_B1hw.to(self.mean_D11.device)
        return (maps_BDhw - self.mean_D11) / self.deviation_D11 * valid_B1hw


def encoder(model: SamClip, options: Options) -> Encode:
    """Return a function from a file to its geometry and the encoder's map, float ``D×h×w``."""
    if model.config.kind == "pair" and options.features == "tokens":
        raise ValueError("the tokens of a pair are raw pixels: use --features sam")

    @torch.inference_mode()
    def encode(encoded: bytes) -> tuple[Geometry, Tensor]:
        prepared = model.prepare(encoded)
        size = prepared.geometry.input_height, prepared.geometry.input_width
        output = model.net.image_encoder(
            torch.from_numpy(prepared.pixels_3SS).to(model.engine.device).float()[None],
            torch.tensor([size], device=model.engine.device),
        )
        map_BDhw = output.tokens_BDhw if options.features == "tokens" else output.sam_BDhw
        return prepared.geometry, map_BDhw[0].float()

    return encode


def segmentation(heads: Sequence[str], model: SamClip, options: Options) -> Metrics:
    """Return mean IoU per head on each set in ``root``: VOC, ADE20K, or our own."""
    metrics = {}
    for split in _labelled(options):
        fit = replace(PIXELS, seed=options.seed)
        answers = probe(
            encoder(model, options), split, heads, fit, torch.device(model.engine.device)
        )
        for head, confusion_CC in answers.items():
            name = f"{split.val.name}_probe_{head}_{options.features}_miou"
            metrics[name] = mean_iou(confusion_CC)
    return metrics


def classification(model: SamClip, options: Options) -> Metrics:
    """Return linear top-1 on pooled features: of ``root/train`` and ``val``, or our own sets."""
    metrics = {}
    for split in _classified(options):
        fit = replace(PICTURES, seed=options.seed)
        encode, device = pooled(encoder(model, options)), torch.device(model.engine.device)
        confusion_CC = probe(encode, split, ["linear"], fit, device)["linear"]
        name = f"{split.val.name}_probe_classify_{options.features}_top1"
        metrics[name] = float(np.trace(confusion_CC) / confusion_CC.sum())
    return metrics


def pooled(encode: Encode) -> Encode:
    """Return an encode function for the mean over the cells inside the image, ``D×1×1``."""

    def pool(encoded: bytes) -> tuple[Geometry, Tensor]:
        geometry, map_Dhw = encode(encoded)
        rows, columns = geometry.grid(map_Dhw.shape[-1])
        return Geometry(1, 1, 1), map_Dhw[:, :rows, :columns].mean(dim=(1, 2))[:, None, None]

    return pool


def _labelled(options: Options) -> list[Split]:
    root, limit = options.root, options.limit
    if (root / "SegmentationClass").is_dir():
        split = Split(layouts.voc(root, "train"), layouts.voc(root))
    elif (root / "objectInfo150.txt").exists():
        split = Split(layouts.ade20k(root, "training"), layouts.ade20k(root))
    else:
        return [
            Split(own_set(options, source, "train"), own_set(options, source))
            for source in ("coco_multi", "labelmefacade", "camvid")
        ]
    return [Split(*(replace(part, pictures=limited(part.pictures, limit)) for part in split))]


def _classified(options: Options) -> list[Split]:
    if (options.root / "train").is_dir():
        return [Split(*(_folder_set(options, part) for part in ("train", "val")))]
    return [
        Split(*(_own_classes(options, source, part) for part in ("train", "val")))
        for source in ("caltech101", "imagen200")
    ]


def _folder_set(options: Options, part: str) -> LabelledSet:
    pictures, names = layouts.class_folders(options.root / part)
    chosen = [
        Mapped(path.read_bytes, partial(np.full, (1, 1), index))
        for path, index in limited(pictures, options.limit)
    ]
    return LabelledSet("folders", dict(enumerate(names)), chosen)


def _own_classes(options: Options, source: str, part: str) -> LabelledSet:
    pictures = [
        Mapped(partial(bytes, sample.encoded), partial(np.full, (1, 1), sample.class_index))
        for sample in own_samples(options, source, part)
    ]
    return LabelledSet(source, class_names(options.root, source), pictures)


def probe(
    encode: Encode, split: Split, heads: Sequence[str], fit: Fit, device: torch.device
) -> dict[str, NDArray[np.int64]]:
    """Train each head on one split and return its C×C confusion on the other.

    The background of a set counts as a class, as a head can learn it.
    """
    values = split.val.values(background=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = _cached(encode, split.train.pictures, values, Path(folder))
        scale = _scale(cache, device)
        networks = {head: _fit(head, cache, scale, len(values), fit) for head in heads}
    totals = {head: np.zeros((len(values), len(values)), np.int64) for head in heads}
    for picture in progress(split.val.pictures, f"probe {split.val.name}"):
        geometry, map_Dhw = encode(picture.read())
        x_BDhw = scale.apply(map_Dhw[None], _valid(geometry, map_Dhw.shape[-1])[None])
        for head, network in networks.items():
            answer_HW = _decide(network(x_BDhw), geometry)
            totals[head] += confusion(picture.labels(), answer_HW, values)
    return totals


def _cached(encode: Encode, pictures: Sequence[Mapped], values: list[int], folder: Path) -> Cache:
    maps, labels, valid = None, [], []
    for place, picture in enumerate(progress(pictures, "encode")):
        geometry, map_Dhw = encode(picture.read())
        if maps is None:
            shape = len(pictures), *map_Dhw.shape
            maps = open_memmap(folder / "maps.npy", "w+", np.float16, shape)
        maps[place] = map_Dhw.cpu().numpy()
        labels.append(_frame_labels(class_rows(picture.labels(), values), geometry))
        valid.append(_valid(geometry, map_Dhw.shape[-1]))
    if maps is None:
        raise ValueError("no pictures to train a head on")
    return Cache(maps, torch.stack(valid), np.stack(labels))


def _valid(geometry: Geometry, side: int) -> Tensor:
    size_12 = torch.tensor([[geometry.input_height, geometry.input_width]])
    return valid_mask(size_12, side, side, geometry.size // side)


def _frame_labels(row_HW: NDArray[np.integer], geometry: Geometry) -> NDArray[np.int16]:
    """Return classes over the padded model frame at LABEL_STRIDE, IGNORED outside the image."""
    stride = min(LABEL_STRIDE, geometry.size)
    height, width = (-(-side // stride) for side in (geometry.input_height, geometry.input_width))
    labels_tt = np.full((geometry.size // stride,) * 2, IGNORED, np.int16)
    labels_tt[:height, :width] = cv2.resize(
        row_HW.astype(np.int16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return labels_tt


def _scale(cache: Cache, device: torch.device) -> Scale:
    width = cache.maps_NDhw.shape[1]
    total_D, squares_D, count = torch.zeros(width).double(), torch.zeros(width).double(), 0
    for map_Dhw, valid_1hw in zip(cache.maps_NDhw, cache.valid_N1hw, strict=True):
        cells_Dn = torch.from_numpy(map_Dhw.astype(np.float64))[:, valid_1hw[0]]
        total_D += cells_Dn.sum(dim=1)
        squares_D += cells_Dn.square().sum(dim=1)
        count += cells_Dn.shape[1]
    mean_D = total_D / count
    deviation_D = (squares_D / count - mean_D.square()).clamp(min=1e-8).sqrt()
    return Scale(*(value.float().to(device)[:, None, None] for value in (mean_D, deviation_D)))


def _fit(head: str, cache: Cache, scale: Scale, classes: int, fit: Fit) -> nn.Module:
    device, random = scale.mean_D11.device, np.random.default_rng(fit.seed)
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        network = HEADS[head](cache.maps_NDhw.shape[1], classes).to(device).train()
        parameters = network.parameters()
        optimiser = torch.optim.AdamW(parameters, fit.rate, weight_decay=fit.weight_decay)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, fit.steps, power=0.9)
        for _ in progress(range(fit.steps), f"fit {head}"):
            index_B = random.integers(len(cache.maps_NDhw), size=fit.batch)
            maps_BDhw = torch.from_numpy(cache.maps_NDhw[index_B])
            logits_BChw = network(scale.apply(maps_BDhw, cache.valid_N1hw[index_B]))
            labels_Btt = torch.from_numpy(cache.labels_Ntt[index_B]).long().to(device)
            logits_BCtt = F.interpolate(logits_BChw, labels_Btt.shape[-2:], mode="bilinear")
            loss = F.cross_entropy(
                logits_BCtt, labels_Btt, ignore_index=IGNORED, reduction="sum"
            ) / (labels_Btt != IGNORED).sum().clamp(min=1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _decide(logits_1Chw: Tensor, geometry: Geometry) -> NDArray[np.integer]:
    """Return the best class of each pixel of the original image, H×W."""
    frame = F.interpolate(logits_1Chw, (geometry.size, geometry.size), mode="bilinear")
    shown = frame[:, :, : geometry.input_height, : geometry.input_width]
    logits_1CHW = F.interpolate(shown, (geometry.height, geometry.width), mode="bilinear")
    return logits_1CHW.argmax(dim=1)[0].cpu().numpy()
