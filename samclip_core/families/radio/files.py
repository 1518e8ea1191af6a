"""Read the published files of RADIO, in either of their layouts.

a folder of the hub     config.json and model.safetensors
a file of torch hub     NAME.pth.tar, with the arguments of the training
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samclip_core import guarded
from samclip_core.errors import CheckpointError
from samclip_core.families.radio import MlpConfig, RadioConfig
from samclip_core.io.official import as_published, checked, load_pickle, loaded, read_state

HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16}
"""Attention heads of the published ViTs by width: B, L, so400m, H."""
PATCH = 16
_SUMMARY, _FEATURES, _PATCHES = "head_mlp", "feat_mlp", "model.patch_generator."
_OTHER = "give the file for torch hub of the same page, for example c-radio_v3-b_half.pth.tar"


@dataclass(frozen=True)
class RadioFile:
    """A RADIO model: ``state`` has the hub's keys; ``args`` are those of its training.

    ``class_tokens`` has the index of the class token of each adaptor.
    """

    weights: Path
    state: Mapping[str, Tensor]
    args: Mapping[str, Any]
    class_tokens: Mapping[str, int]

    @as_published("a RADIO")
    def config(self, words: str, masks: bool = True) -> RadioConfig:
        """Describe the trunk, the adaptor ``words`` and, for ``masks``, the adaptor for SAM.

        Raises CheckpointError if an adaptor is missing, or if the architecture is another.
        """
        self._check_adaptors(words, masks)
        width, patch = self._shape(f"{_PATCHES}embedder.weight")
        heads = (self.args.get("model_kwargs") or {}).get("num_heads") or HEADS.get(width)
        if heads is None or patch != 3 * PATCH**2:
            raise CheckpointError(
                f"{self.weights}: a {self.args['model']} of width {width} with patches of "
                f"{isqrt(patch // 3)} pixels is not supported: expected patches of {PATCH} pixels "
                f"and a width of {', '.join(map(str, HEADS))} (C-RADIO B, L, so400m or H)"
            )
        config = RadioConfig(
            width=width,
            depth=self._count("model.blocks."),
            heads=heads,
            hidden=self._shape("model.blocks.0.mlp.fc1.weight")[0],
            prefix=self._shape(f"{_PATCHES}cls_token.token")[0],
            class_token=self.class_tokens[words],
            table=isqrt(self._shape(f"{_PATCHES}pos_embed")[1]),
            words=self._mlp(f"adaptors.{words}.{_SUMMARY}."),
            sam=self._mlp(f"adaptors.sam.{_FEATURES}.") if masks else None,
            normalised="feature_normalizer.tx" in self.state,
        )
        guarded.check_layers(asdict(config), str(self.weights))
        return config

    @as_published("a RADIO")
    def parts(self, words: str, masks: bool = True) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, under its keys; SAM's neck is not part of the file."""
        sam = {f"adaptors.sam.{_FEATURES}.": "image_encoder.sam."} if masks else {}
        places = {
            "model.": "image_encoder.",
            f"{_PATCHES}cls_token.token": "image_encoder.prefix",
            f"{_PATCHES}pos_embed": "image_encoder.pos_embed",
            f"{_PATCHES}embedder.": "image_encoder.embedder.",
            "input_conditioner.": "image_encoder.",
            **sam,
            f"adaptors.{words}.{_SUMMARY}.": "clip_head.words.",
        }
        found = {}
        for key, value in self.state.items():
            if old := max((old for old in places if key.startswith(old)), key=len, default=""):
                found[places[old] + key.removeprefix(old)] = value
        patches_DN = found["image_encoder.embedder.weight"]
        found["image_encoder.embedder.weight"] = patches_DN.unflatten(1, (3, PATCH, PATCH))
        if (turn_DD := self.state.get("feature_normalizer.tx")) is not None:
            found["image_encoder.normaliser.weight"] = turn_DD
            found["image_encoder.normaliser.bias"] = (
                -turn_DD.float() @ self.state["feature_normalizer.mean"].float()
            )
        return found

    def _check_adaptors(self, words: str, masks: bool) -> None:
        adaptors = sorted({key.split(".")[1] for key in self.state if key.startswith("adaptors.")})
        have = ", ".join(adaptors)
        error = ""
        if any(".parametrizations." in key for key in self.state):
            error = "spectral reparametrisation that is not folded in: use a file where it is"
        elif not adaptors:
            error = f"no adaptors, which words and masks need; the hub may lack them: {_OTHER}"
        elif words not in adaptors or words not in self.class_tokens:
            error = f"no adaptor {words!r} for words: choose one of these with --words: {have}"
        elif masks and "sam" not in adaptors:
            error = (
                f"no adaptor for SAM, which masks need (it has {have}): leave out --sam for a "
                "checkpoint without masks, give mobile_sam.pt, or use a C-RADIOv3, not v4"
            )
        if error:
            raise CheckpointError(f"{self.weights} has {error}")

    def _mlp(self, prefix: str) -> MlpConfig:
        return MlpConfig(
            hidden=self._shape(f"{prefix}fc1.weight")[0],
            blocks=self._count(f"{prefix}blocks."),
            output=self._shape(f"{prefix}final.2.weight")[0],
        )

    def _count(self, prefix: str) -> int:
        """Return the number of layers below a prefix."""
        inside = (key.removeprefix(prefix) for key in self.state if key.startswith(prefix))
        return len({key.split(".")[0] for key in inside})

    def _shape(self, key: str) -> torch.Size:
        if key not in self.state:
            raise CheckpointError(
                f"{self.weights} has no {key}: its architecture is not that of a C-RADIO with "
                "adaptors of version v2, which this program reads: use another file or --words"
            )
        return self.state[key].shape


def read_radio(path: Path) -> RadioFile:
    """Read a folder of the hub or a file of torch hub, without running code from it.

    Raises CheckpointError if a file is missing, damaged or not RADIO's.
    """
    try:
        return _hub(path) if path.is_dir() else _torch_hub(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {error.filename}: download it first") from error
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no RADIO ({error}): expected its .pth.tar for torch hub, with args and "
            "state_dict, or a folder with its config.json and model.safetensors"
        ) from error


def _hub(folder: Path) -> RadioFile:
    config = guarded.read_json(folder / "config.json")
    tokens = _class_tokens(config["args"])
    file = folder / "model.safetensors"
    state = {key.removeprefix("radio_model."): value for key, value in read_state(file).items()}
    for name, about in (config.get("adaptor_configs") or {}).items():
        tokens[name] = about.get("head_idx", tokens.get(name, 0))
    return RadioFile(file, state, config["args"], tokens)


def _torch_hub(file: Path) -> RadioFile:
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = loaded(file, load_pickle)
    args = vars(stored["args"])
    names = [teacher["name"] for teacher in args["teachers"]]
    state = checked(file, stored.get("state_dict_ema") or stored["state_dict"])
    renamed = {_as_in_the_hub(key, names): value for key, value in state.items()}
    return RadioFile(file, renamed, args, _class_tokens(args))


def _class_tokens(args: Mapping[str, Any]) -> dict[str, int]:
    """Return the class token of each teacher: its own slot, or its place in the list."""
    tokens: dict[str, int] = {}
    for index, teacher in enumerate(args["teachers"]):
        tokens.setdefault(teacher["name"], teacher.get("token_slot", index))
    return tokens if args.get("cls_token_per_teacher", True) else dict.fromkeys(tokens, 0)


def _as_in_the_hub(key: str, names: list[str]) -> str:
    """Rename a key; an adaptor has the name of its teacher, or its number."""
    first, _, rest = key.removeprefix("module.").partition(".")
    if part := {"_heads": _SUMMARY, "_feature_projections": _FEATURES}.get(first):
        name, _, rest = rest.partition(".")
        return f"adaptors.{names[int(name)] if name.isdigit() else name}.{part}.{rest}"
    return f"{'model' if first == 'base_model' else first.removeprefix('_')}.{rest}"
