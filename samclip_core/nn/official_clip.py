"""Load the published files of a CLIP or SigLIP.

    MODEL:FILE         weights of an architecture in open_clip's list
    MODEL/TAG:FILE     the same; TAG names them in open_clip's list of published weights
    local-dir:FOLDER   a folder of the hub, in open_clip's layout (open_clip_config.json) or in
                       transformers' (config.json)

A model with a tokenizer of its own, such as SigLIP's, needs tokenizer.json and
tokenizer_config.json beside its weights.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import nn

from samclip_core import guarded
from samclip_core.config import SamClipConfig, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.io.official import check, read_state
from samclip_core.io.sources import WEIGHTS
from samclip_core.nn.clip_model import (
    Description,
    Model,
    build_model,
    describe,
    description,
    resize_filter,
    warn_without_tag,
)
from samclip_core.nn.text_encoder import TextEncoder, build_text_encoder
from samclip_core.nn.tokenizer import published_tokenizer
from samclip_core.nn.transformers_clip import describe_config, from_transformers, read_processor

FORMS = "MODEL:FILE, MODEL/TAG:FILE or local-dir:FOLDER"
_LOCAL = "local-dir"
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Tensors beside the weights in TorchScript archives, such as OpenAI's."""


@dataclass(frozen=True)
class OfficialClip:
    """An open_clip model with its weights; ``tokenizer_json`` is None for CLIP's own tokenizer."""

    text: TextConfig
    weights: Path
    model: Model
    tokenizer_json: str | None
    text_weights: Path | None = None  # of a file of their own

    def describe_in(self, config: SamClipConfig) -> SamClipConfig:
        """Return ``config`` with this model's text tower, width and logit scale.

        SigLIP's logit bias is the same for every label, so that it has no effect on a softmax.
        """
        return replace(
            config,
            text=self.text,
            text_dim=description(self.text)["model_cfg"]["embed_dim"],
            logit_scale=self.model.logit_scale.exp().item(),
        )

    def fill_tower(self, tower: nn.Module) -> None:
        tower.load_state_dict(self.model.visual.state_dict())

    def text_encoder(self) -> TextEncoder:
        encoder, state = build_text_encoder(self.text, self.tokenizer_json), self.model.state_dict()
        model = encoder.get_submodule("model")
        model.load_state_dict({key: state[key] for key in model.state_dict()})
        return encoder.requires_grad_(False)


def load_official_clip(given: str, images: bool = True) -> OfficialClip:
    """Load a model from its files; ``given`` has one of the module's forms.

    Without ``images``, its text tower alone. Raises CheckpointError if it has another form, or if a
    file is missing or does not fit.
    """
    name, _, path = given.partition(":")
    if not (name and path):
        raise CheckpointError(f"{given!r} names no CLIP model: expected {FORMS}")
    text, weights = _in_folder(Path(path)) if name == _LOCAL else _listed(name, Path(path))
    published = from_transformers(read_state(weights))  # before seconds of work for the model
    with torch.device("meta"):
        described = build_model(text, images)
    state = convert_state_dict(described, published)
    if isinstance(described, open_clip.CustomTextCLIP):
        state = convert_to_custom_text_state_dict(state)
    dropped = _NO_WEIGHTS if images else (*_NO_WEIGHTS, "visual.")
    state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    make = partial(build_model, text, images)
    check(make, state, weights.name, f"open_clip's {text.model}")
    model = make()
    model.load_state_dict(state)
    tokenizer = published_tokenizer(text, weights.parent)
    return OfficialClip(text, weights, model.eval().requires_grad_(False), tokenizer)


def _listed(name: str, weights: Path) -> tuple[TextConfig, Path]:
    model, _, tag = name.partition("/")
    if not tag:
        warn_without_tag(model)
    return _text(model, describe(model, tag)), weights


def _in_folder(folder: Path) -> tuple[TextConfig, Path]:
    try:
        text = _text(folder.resolve().name, _described(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} has no usable open_clip_config.json or config.json ({error}): download "
            "every file of the model's page into this folder"
        ) from error
    files = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not files:
        raise CheckpointError(f"{folder} has no weights: expected {' or '.join(WEIGHTS)}")
    return text, files[0]


def _text(model: str, found: Description) -> TextConfig:
    guarded.check_layers(found, model)
    filter = resize_filter(model, found["preprocess_cfg"])
    return TextConfig(tower="open_clip", model=model, open_clip=found, filter=filter)


def _described(folder: Path) -> Description:
    """Read a folder's description, preferably open_clip's own."""
    own = folder / "open_clip_config.json"
    if own.is_file():
        description = guarded.read_json(own)
        return {part: description[part] for part in ("model_cfg", "preprocess_cfg")}
    config = guarded.read_json(folder / "config.json")
    return describe_config(config, read_processor(folder), folder.resolve().name)
