"""Head probing: how well a head learns on the frozen encoder (paper, tables 3 and 4).

The paper does not publish how its heads are trained. This one is trained for epochs of the training
set with the usual augmentation (``probe_training``), and evaluated on whole photographs.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from samclip_core import guarded
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.model import SamClip
from training.data.annotations import class_names
from training.evaluation.layouts import LabelledSet, Mapped, class_folders
from training.evaluation.measures import class_pixels, semantic_figures
from training.evaluation.parallel import progress
from training.evaluation.probe_training import Fit, FrozenEncoder, draw_crop, draw_window, fit_head
from training.evaluation.public_sets import check, labelled, layout_of
from training.evaluation.semantic import SOURCES, own_set
from training.evaluation.suite import Metrics, Options, limited, own_samples

PIXELS = Fit(epochs=50, batch=16, draw=draw_window)
PICTURES = Fit(epochs=90, batch=256, draw=draw_crop)


Split = tuple[LabelledSet, LabelledSet]
"""The sets that heads are trained on and evaluated on."""


def frozen_encoder(model: SamClip, options: Options, pooled: bool = False) -> FrozenEncoder:
    """Return the encoder of a model, at the side of the task that the probe resembles."""
    config = model.config
    if not config.masks and options.features != "clip":
        raise ValueError(f"{config.name} has no SAM embedding to probe: use --features clip")
    if config.clip_head is None and options.features == "tokens":
        raise ValueError(f"a {config.kind} has no map of tokens: use --features sam or clip")
    net, engine = model.net, model.engine
    assert isinstance(engine, TorchEngine)
    if model.config.squash:
        raise InvalidRequest(
            f"{model.config.name!r} reads squashed pictures, and probes learn from padded "
            f"ones: probe a checkpoint without {config.family.title}"
        )

    def encode(pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        with engine.autocast():
            if options.features == "clip":
                _, dense_BDhw, pooled_BD, _ = net.encode(pixels_B3SS, sizes_B2)
                return pooled_BD[:, :, None, None] if pooled else dense_BDhw
            output = net.image_encoder(pixels_B3SS, sizes_B2)
        return output.tokens_BDhw if options.features == "tokens" else output.sam_BDhw

    size = model.config.size_of("classify" if pooled else "semantic")
    return FrozenEncoder(size, torch.device(engine.device), encode, pooled)


MAPS = ("voc", "ade20k")


def is_public(root: Path) -> bool:
    """Return whether the folder has the layout of a public set that can be probed."""
    return (root / "train").is_dir() or any(layout_of(name, root) for name in MAPS)


def segmentation(model: SamClip, options: Options) -> Metrics:
    """Return the semantic figures of each set in ``root``: VOC, ADE20K, or our own."""
    metrics: Metrics = {}
    frozen = frozen_encoder(model, options)
    fit = replace(_fit(PIXELS, options), head=options.head)
    for split in _labelled(options):
        name = f"{split[1].name}_probe_{options.head}_{options.features}"
        metrics |= semantic_figures(name, [*probe(frozen, split, fit)])
    return metrics


def classification(model: SamClip, options: Options) -> Metrics:
    """Return linear top-1 on pooled features: of ``root/train`` and ``val``, or our own sets."""
    metrics = {}
    frozen = frozen_encoder(model, options, pooled=True)
    for split in _classified(options):
        # As a sum: with 3 × 1,000 counts each, ImageNet's 50,000 photographs would need 1.2 GB.
        total_3C = reduce(np.add, probe(frozen, split, _fit(PICTURES, options)))
        right, true, _ = total_3C.sum(axis=1)
        metrics[f"{split[1].name}_probe_classify_{options.features}_top1"] = float(right / true)
    return metrics


def _fit(usual: Fit, options: Options) -> Fit:
    return replace(usual, seed=options.seed, epochs=options.epochs or usual.epochs)


def _labelled(options: Options) -> list[Split]:
    for name in MAPS:
        if layout_of(name, options.root):
            train, val = (labelled(name, options.root, options.limit, split) for split in (0, 1))
            return [(train, val)]
    return [(own_set(options, source, "train"), own_set(options, source)) for source in SOURCES]


def _classified(options: Options) -> list[Split]:
    if (options.root / "train").is_dir():
        return [(_folder_set(options, "train"), _folder_set(options, "val"))]
    return [
        (_own_classes(options, source, "train"), _own_classes(options, source, "val"))
        for source in ("caltech101", "imagen200")
    ]


def _folder_set(options: Options, part: str) -> LabelledSet:
    data = class_folders(part, options.root)
    chosen = [
        Mapped(partial(guarded.read, path), partial(np.full, (1, 1), index), (path,))
        for path, index in limited(data.pictures, options.limit)
    ]
    made = LabelledSet("folders", dict(enumerate(data.names)), chosen)
    check(made)
    return made


def _own_classes(options: Options, source: str, part: str) -> LabelledSet:
    pictures = [
        Mapped(partial(bytes, sample.encoded), partial(np.full, (1, 1), sample.class_index))
        for sample in own_samples(options, source, part)
    ]
    return LabelledSet(source, class_names(options.root, source), pictures)


def probe(frozen: FrozenEncoder, split: Split, fit: Fit) -> Iterator[NDArray[np.int64]]:
    """Train a head on one split; yield its counts 3×C for each photograph of the other.

    The background of a set counts as a class, as a head can learn it.
    """
    train, val = split
    values = val.values(background=True)
    scale, head = fit_head(frozen, train.pictures, values, fit)
    for picture in progress(val.pictures, f"probe {val.name}"):
        geometry, map_1Dhw, valid_11hw = frozen.whole(picture.read())
        logits_1Chw = head(scale.apply(map_1Dhw, valid_11hw))
        if frozen.pooled:
            answer_HW = logits_1Chw.argmax(dim=1)[0].cpu().numpy()
        else:
            answer_HW = _decide(logits_1Chw, geometry)
        yield class_pixels(picture.labels(), answer_HW, values)


def _decide(logits_1Chw: Tensor, geometry: Geometry) -> NDArray[np.integer]:
    """Return the best class of each pixel of the original image, H×W."""
    frame = F.interpolate(logits_1Chw, (geometry.size, geometry.size), mode="bilinear")
    shown = frame[:, :, : geometry.input_height, : geometry.input_width]
    logits_1CHW = F.interpolate(shown, (geometry.height, geometry.width), mode="bilinear")
    return logits_1CHW.argmax(dim=1)[0].cpu().numpy()
