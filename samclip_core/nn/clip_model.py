"""open_clip models, built from their description.

A description is the content of an open_clip_config.json: the architecture (``model_cfg``), and the
mean and the standard deviation of pixels, among others (``preprocess_cfg``).
"""

import logging
from collections import Counter
from typing import Any, TypeAlias

import open_clip
import torch
from torch import Tensor

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError

log = logging.getLogger(__name__)

Description = dict[str, Any]
Model: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP
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
    architecture = open_clip.get_model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise CheckpointError(
            f"open_clip has no weights {tag!r} of {model}: give one of {', '.join(tags) or 'none'}"
        )
    published = [open_clip.get_pretrained_cfg(model, name) for name in ([tag] if tag else tags)]
    quick = bool(architecture.get("quick_gelu"))
    if tag and bool(published[0].get("quick_gelu")) != quick:
        other = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
        raise CheckpointError(
            f"the weights {tag} were trained with another activation than {model}: use {other}"
        )
    default = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    complete = [default | cfg for cfg in published or [default]]
    normalised = Counter((tuple(cfg["mean"]), tuple(cfg["std"])) for cfg in complete)
    if len(normalised) > 1:
        log.warning(
            "published weights of %s differ in the mean of their pixels: name the tag, as in "
            "%s/%s:FILE, to get the right one",
            *(model, model, tags[0]),
        )
    ((mean, std), _) = normalised.most_common(1)[0]
    return {"model_cfg": architecture, "preprocess_cfg": {"mean": [*mean], "std": [*std]}}


def description(text: TextConfig) -> Description:
    """Return the description of an open_clip model. Raises CheckpointError if it is unknown."""
    return text.open_clip or describe(text.model)


def pixel_statistics(text: TextConfig) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of pixels 0..255, each 3×1×1."""
    published = description(text).get("preprocess_cfg", {})
    mean_3 = published.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std_3 = published.get("std", open_clip.OPENAI_DATASET_STD)
    return 255 * torch.tensor(mean_3).view(3, 1, 1), 255 * torch.tensor(std_3).view(3, 1, 1)


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
