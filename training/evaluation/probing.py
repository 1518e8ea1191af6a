"""Head probing: how well a small head learns on the frozen encoder (paper, tables 3 and 4).

The paper does not publish how its heads are trained. These are trained for epochs of the training
set with the usual augmentation (``probe_cuts``), and evaluated on whole photographs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.geometry import Geometry
from samclip_core.model import SamClip
from training.data.annotations import class_names
from training.evaluation import layouts
from training.evaluation.class_layouts import class_folders
from training.evaluation.layouts import LabelledSet, Mapped
from training.evaluation.measures import class_pixels
from training.evaluation.overlap import semantic_figures
from training.evaluation.probe_cuts import draw_crop, draw_window
from training.evaluation.probe_fit import Fit, Frozen, fit_heads
from training.evaluation.semantic import own_set
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress

PIXELS = Fit(epochs=50, batch=16, draw=draw_window)
PICTURES = Fit(epochs=90, batch=256, draw=draw_crop)


class Split(NamedTuple):
    """The sets that heads are trained and evaluated on."""

    train: LabelledSet
    val: LabelledSet


def frozen_encoder(model: SamClip, options: Options, pooled: bool = False) -> Frozen:
    """Return the encoder of a model, at the side of the task that the probe resembles."""
    if model.config.kind == "pair" and options.features == "tokens":
        raise ValueError("the tokens of a pair are raw pixels: use --features sam")
    net, engine = model.net, model.engine
    assert isinstance(engine, TorchEngine)

    def encode(pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        with engine.autocast():
            output = net.image_encoder(pixels_B3SS, sizes_B2)
        return output.tokens_BDhw if options.features == "tokens" else output.sam_BDhw

    size = model.config.size_of("classify" if pooled else "semantic")
    return Frozen(size, torch.device(engine.device), encode, pooled)


def is_public(root: Path) -> bool:
    """Return whether the folder has the layout of a public set that can be probed."""
    return any(
        (root / name).exists() for name in ("SegmentationClass", "objectInfo150.txt", "train")
    )


def segmentation(heads: Sequence[str], model: SamClip, options: Options) -> Metrics:
    """Return the semantic figures of each head on each set in ``root``: VOC, ADE20K, or our own."""
    metrics: Metrics = {}
    frozen = frozen_encoder(model, options)
    for split in _labelled(options):
        counted = list(probe(frozen, split, heads, _fit(PIXELS, options)))
        for head in heads:
            name = f"{split.val.name}_probe_{head}_{options.features}"
            metrics |= semantic_figures(name, [counts[head] for counts in counted])
    return metrics


def classification(model: SamClip, options: Options) -> Metrics:
    """Return linear top-1 on pooled features: of ``root/train`` and ``val``, or our own sets."""
    metrics = {}
    frozen = frozen_encoder(model, options, pooled=True)
    for split in _classified(options):
        counted = probe(frozen, split, ["linear"], _fit(PICTURES, options))
        # As a sum: with 3 × 1,000 counts each, ImageNet's 50,000 photographs would need 1.2 GB.
        total_3C = reduce(np.add, (counts["linear"] for counts in counted))
        right, true, _ = total_3C.sum(axis=1)
        metrics[f"{split.val.name}_probe_classify_{options.features}_top1"] = float(right / true)
    return metrics


def _fit(usual: Fit, options: Options) -> Fit:
    return replace(usual, seed=options.seed, epochs=options.epochs or usual.epochs)


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
    pictures, names = class_folders(options.root / part)
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
    frozen: Frozen, split: Split, heads: Sequence[str], fit: Fit
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Train each head on one split; yield its counts 3×C for each photograph of the other.

    The background of a set counts as a class, as a head can learn it.
    """
    values = split.val.values(background=True)
    scale, networks = fit_heads(frozen, split.train.pictures, values, heads, fit)
    for picture in progress(split.val.pictures, f"probe {split.val.name}"):
        geometry, map_1Dhw, valid_11hw = frozen.whole(picture.read())
        x_1Dhw, truth_HW = scale.apply(map_1Dhw, valid_11hw), picture.labels()
        counts = {}
        for head, network in networks.items():
            logits_1Chw = network(x_1Dhw)
            answer_HW = (
                logits_1Chw.argmax(dim=1)[0].cpu().numpy()
                if frozen.pooled
                else _decide(logits_1Chw, geometry)
            )
            counts[head] = class_pixels(truth_HW, answer_HW, values)
        yield counts


def _decide(logits_1Chw: Tensor, geometry: Geometry) -> NDArray[np.integer]:
    """Return the best class of each pixel of the original image, H×W."""
    frame = F.interpolate(logits_1Chw, (geometry.size, geometry.size), mode="bilinear")
    shown = frame[:, :, : geometry.input_height, : geometry.input_width]
    logits_1CHW = F.interpolate(shown, (geometry.height, geometry.width), mode="bilinear")
    return logits_1CHW.argmax(dim=1)[0].cpu().numpy()
