"""Read the published files of RADIO, in either of their layouts.

    a folder of the hub     config.json and model.safetensors
    a file of torch hub     NAME.pth.tar, with the arguments of the training
"""

import argparse
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samclip_core.config import MlpConfig, RadioConfig
from samclip_core.errors import CheckpointError
from samclip_core.io.official import read_state

HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16}
"""Attention heads of the published ViTs by width: B, L, so400m, H."""
PATCH = 16
_SUMMARY, _FEATURES = "head_mlp", "feat_mlp"
_OTHER_LAYOUT = (
    "download the file for torch hub from the same page, for example c-radio_v3-b_half.pth.tar, "
    "and give that"
)


@dataclass(frozen=True)
class RadioFile:
    """A RADIO model: ``state`` has the hub's keys; ``args`` are those of its training."""

    weights: Path
    state: Mapping[str, Tensor]
    args: Mapping[str, Any]

    @property
    def teachers(self) -> list[str]:
        """The names of the teachers, in the order of their class tokens."""
        return list(dict.fromkeys(teacher["name"] for teacher in self.args["teachers"]))

    def config(self, words: str) -> RadioConfig:
        """Describe the trunk, the adaptor ``words`` and the adaptor for SAM.

        Raises CheckpointError if an adaptor is missing, or if the architecture is another.
        """
        self._check(words)
        width, depth, heads, hidden = self._trunk()
        cells = self._shape("model.patch_generator.pos_embed")[1]
        return RadioConfig(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            prefix=self._shape("model.patch_generator.cls_token.token")[0],
            class_token=self.teachers.index(words) if self.args["cls_token_per_teacher"] else 0,
            table=isqrt(cells),
            words=self._mlp(words, _SUMMARY),
            sam=self._mlp("sam", _FEATURES),
            normalised="feature_normalizer.mean" in self.state,
        )

    def parts(self, words: str) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, under its keys; SAM's neck is not part of the file."""
        generator = "model.patch_generator."
        places = {
            "model.": "image_encoder.",
            f"{generator}embedder.": "image_encoder.embedder.",
            f"{generator}cls_token.token": "image_encoder.prefix",
            f"{generator}pos_embed": "image_encoder.pos_embed",
            "input_conditioner.": "image_encoder.",
            "feature_normalizer.": "image_encoder.feature_normalizer.",
            f"adaptors.sam.{_FEATURES}.": "image_encoder.sam.",
            f"adaptors.{words}.{_SUMMARY}.": "clip_head.words.",
        }
        found = {}
        for key, value in self.state.items():
            if old := max((old for old in places if key.startswith(old)), key=len, default=""):
                found[places[old] + key.removeprefix(old)] = value
        patches_DN = found["image_encoder.embedder.weight"]
        found["image_encoder.embedder.weight"] = patches_DN.unflatten(1, (3, PATCH, PATCH))
        return found

    def _check(self, words: str) -> None:
        adaptors = sorted({key.split(".")[1] for key in self.state if key.startswith("adaptors.")})
        if any(".parametrizations." in key for key in self.state):
            raise CheckpointError(
                f"{self.weights} has spectral reparametrisation that is not folded into its "
                f"weights: {_OTHER_LAYOUT}"
            )
        if not adaptors:
            raise CheckpointError(
                f"{self.weights} has no adaptors, which words and masks need; its repository was "
                f"published without them: {_OTHER_LAYOUT}"
            )
        if words not in adaptors:
            raise CheckpointError(
                f"{self.weights} has no adaptor {words!r} for words: choose one of its adaptors "
                f"for a language model with --words ({', '.join(adaptors)})"
            )
        if "sam" not in adaptors:
            raise CheckpointError(
                f"{self.weights} has no adaptor for SAM, which masks need (it has "
                f"{', '.join(adaptors)}): use a C-RADIOv3; C-RADIOv4 has none"
            )
        upsampled = {teacher.get("fd_upsample_factor", 1) for teacher in self.args["teachers"]}
        if upsampled != {1}:
            raise CheckpointError(
                f"{self.weights} has an adaptor that enlarges its map, which this program does "
                "not support: use for example C-RADIOv3-B"
            )

    def _trunk(self) -> tuple[int, int, int, int]:
        """Return width, depth, attention heads and the width of the MLPs."""
        width, patch = self._shape("model.patch_generator.embedder.weight")
        depth = len({key.split(".")[2] for key in self.state if key.startswith("model.blocks.")})
        heads = (self.args.get("model_kwargs") or {}).get("num_heads") or HEADS.get(width)
        if heads is None or patch != 3 * PATCH**2:
            raise CheckpointError(
                f"{self.weights}: a {self.args['model']} of width {width} with patches of "
                f"{isqrt(patch // 3)} pixels is not supported: expected patches of {PATCH} pixels "
                f"and a width of {', '.join(map(str, HEADS))} (C-RADIOv3 B, L or H)"
            )
        return width, depth, heads, self._shape("model.blocks.0.mlp.fc1.weight")[0]

    def _mlp(self, adaptor: str, part: str) -> MlpConfig:
        prefix = f"adaptors.{adaptor}.{part}."
        blocks = {
            key.removeprefix(prefix).split(".")[1]
            for key in self.state
            if key.startswith(f"{prefix}blocks.")
        }
        hidden, output = (
            self._shape(f"{prefix}{layer}.weight")[0] for layer in ("fc1", "final.2")
        )
        return MlpConfig(hidden=hidden, blocks=len(blocks), output=output)

    def _shape(self, key: str) -> torch.Size:
        if key not in self.state:
            raise CheckpointError(
                f"{self.weights} has no {key}: its architecture is not that of C-RADIOv3 with "
                "adaptors of version v2, which this program reads"
            )
        return self.state[key].shape


def read_radio(path: Path) -> RadioFile:
    """Read a folder of the hub or a file of torch hub, without running code from it.

    Raises CheckpointError if a file is missing, damaged or not RADIO's.
    """
    return _hub(path) if path.is_dir() else _torch_hub(path)


def _hub(folder: Path) -> RadioFile:
    try:
        args = json.loads((folder / "config.json").read_text())["args"]
        args["teachers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} has no usable config.json with RADIO's args ({error}): download config.json "
            "and model.safetensors of the model's page into this folder"
        ) from error
    state = read_state(folder / "model.safetensors")
    return RadioFile(
        folder / "model.safetensors",
        {key.removeprefix("radio_model."): value for key, value in state.items()},
        args,
    )


def _torch_hub(file: Path) -> RadioFile:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(file, map_location="cpu", weights_only=True)
        args = vars(stored["args"])
        state = stored.get("state_dict_ema") or stored["state_dict"]
        names = list(dict.fromkeys(teacher["name"] for teacher in args["teachers"]))
    except FileNotFoundError:
        raise CheckpointError(f"no file {file}: give the path of the downloaded weights") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({str(error).splitlines()[0]}): it is damaged "
            "or wants to run code; download NVIDIA's own file, or use the hub's config.json and "
            "model.safetensors"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is not RADIO's file for torch hub, with args and state_dict ({error}): "
            "download one whose name ends in .pth.tar from the model's page"
        ) from error
    rename = partial(_as_in_the_hub, names=names)
    return RadioFile(file, {rename(key): value for key, value in state.items()}, args)


def _as_in_the_hub(key: str, names: list[str]) -> str:
    """Rename a key; an adaptor has the name of its teacher, or its number."""
    key = key.removeprefix("module.")
    adaptors = {"_heads": _SUMMARY, "_feature_projections": _FEATURES}
    first, _, rest = key.partition(".")
    if first in adaptors:
        name, _, rest = rest.partition(".")
        return f"adaptors.{names[int(name)] if name.isdigit() else name}.{adaptors[first]}.{rest}"
    if first == "base_model":
        return f"model.{rest}"
    return key.removeprefix("_")  # _feature_normalizer
