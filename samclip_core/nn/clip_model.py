"""open_clip models, built from their description.

A description is the content of an open_clip_config.json: the architecture (``model_cfg``), and how
pixels are prepared, such as their mean and their standard deviation (``preprocess_cfg``).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import open_clip
import torch
from torch import Tensor

from samclip_core.config import Filter, TextConfig
from samclip_core.errors import CheckpointError

log = logging.getLogger(__name__)

Description = dict[str, Any]
Model: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP
Floats: TypeAlias = tuple[float, ...]
BICUBIC: Final = "bicubic"  # the filter that resizes pictures for most published weights
_NO_IMAGES = {"layers": 1, "width": 32, "head_width": 32, "patch_size": 32, "image_size": 32}


def describe(model: str, tag: str = "") -> Description:
    """Describe a model of open_clip's own list, as published under ``tag``.

    Without a tag, the pixels are normalised as for most of its published weights. Raises
    CheckpointError if there is no such model or tag, or if the weights need another activation.
    """
    if model not in open_clip.list_models():
        raise CheckpointError(
            f"open_clip has no architecture {model!r}: give one of open_clip.list_models(), "
            "for example ViT-B-32 or ViT-L-14"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise CheckpointError(
            f"open_clip has no weights {tag!r} of {model}: give one of {', '.join(tags) or 'none'}"
        )
    if tag in _misfits(model):
        raise CheckpointError(
            f"the weights {tag} were trained with another activation than {model}: "
            f"use {_other_activation(model)}"
        )
    ((mean, std, interpolation), _) = _prepared(model, [tag] if tag else tags).most_common(1)[0]
    preprocess = {"mean": [*mean], "std": [*std], "interpolation": interpolation}
    return {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": preprocess}


def warn_without_tag(model: str) -> None:
    """Log a warning if the published weights of ``model`` differ in more than their values."""
    tags, misfits = open_clip.list_pretrained_tags_by_model(model), _misfits(model)
    fitting = [tag for tag in tags if tag not in misfits]
    if misfits:
        log.warning(
            "the published weights %s of %s were trained with another activation: for these, give "
            "%s/%s:FILE",
            *(", ".join(misfits), model, _other_activation(model), misfits[0]),
        )
    if len(_prepared(model, fitting)) > 1:
        log.warning(
            "published weights of %s differ in how pixels are prepared: name the tag, as in "
            "%s/%s:FILE, to get the right one",
            *(model, model, fitting[0]),
        )


def _misfits(model: str) -> list[str]:
    """Return the tags of the published weights that need another activation than ``model`` has."""
    quick = bool(open_clip.get_model_config(model).get("quick_gelu"))
    tags = open_clip.list_pretrained_tags_by_model(model)
    needed = {tag: open_clip.get_pretrained_cfg(model, tag).get("quick_gelu") for tag in tags}
    return [tag for tag, quick_gelu in needed.items() if bool(quick_gelu) != quick]


def _other_activation(model: str) -> str:
    name = model.removesuffix("-quickgelu")
    return name if name != model else f"{model}-quickgelu"


def _prepared(model: str, tags: Sequence[str]) -> Counter[tuple[Floats, Floats, str]]:
    """Count the published means and deviations of pixels, and filters; by default OpenAI's."""
    default = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": BICUBIC,
    }
    published = [open_clip.get_pretrained_cfg(model, tag) for tag in tags] or [default]
    complete = [default | cfg for cfg in published]
    return Counter((tuple(c["mean"]), tuple(c["std"]), c["interpolation"]) for c in complete)


def description(text: TextConfig) -> Description:
    """Return the description of an open_clip model. Raises CheckpointError if it is unknown."""
    return text.open_clip or describe(text.model)


def pixel_statistics(text: TextConfig) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of pixels 0..255, each 3×1×1."""
    own = {"mean": (0, 0, 0), "std": (1, 1, 1)}  # a tower without open_clip reads 0..1
    published = own if text.image else description(text).get("preprocess_cfg", {})
    mean_3 = published.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std_3 = published.get("std", open_clip.OPENAI_DATASET_STD)
    return 255 * torch.tensor(mean_3).view(3, 1, 1), 255 * torch.tensor(std_3).view(3, 1, 1)


def resize_filter(model: str, published: Mapping[str, Any]) -> Filter:
    """Return the filter that resizes pictures for a model, from its published ``preprocess_cfg``.

    "random", which varies it in training, is bicubic as in open_clip. Raises CheckpointError for
    another filter, or if pictures are neither cropped nor stretched to the model's square.
    """
    name, mode = published.get("interpolation") or BICUBIC, published.get("resize_mode")
    if name not in ("bilinear", BICUBIC, "random") or mode not in (None, "shortest", "squash"):
        raise CheckpointError(
            f"pictures for {model} are resized by the filter {name!r} in the mode {mode!r}: "
            "expected bilinear or bicubic, and shortest or squash"
        )
    return "bilinear" if name == "bilinear" else BICUBIC


def build_model(text: TextConfig, images: bool = True) -> Model:
    """Build an open_clip model with random weights; without ``images``, its text tower alone.

    Raises CheckpointError if the text tower is not one of open_clip's own.
    """
    architecture = dict(description(text)["model_cfg"])
    if "multimodal_cfg" in architecture or architecture["text_cfg"].get("hf_model_name"):
        raise CheckpointError(
            f"{text.model!r} is a captioning model, or its text tower comes from the transformers "
            "library, which this program does not use: choose for example ViT-L-14 or a SigLIP"
        )
    custom = architecture.pop("custom_text", False)
    vision = architecture["vision_cfg"] | {"timm_model_pretrained": False}
    architecture["vision_cfg"] = vision if images else _NO_IMAGES
    model: Model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**architecture)
    if not images:
        model.visual = None
    return model
