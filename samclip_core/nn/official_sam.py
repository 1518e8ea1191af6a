"""Load the published weights of a SAM, of any family."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from samclip_core.config import VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families import FAMILIES
from samclip_core.families.family import Family
from samclip_core.io.official import as_published, read_state

READ = [family for family in FAMILIES if family.files]
"""The families whose files have masks; SAM, which takes every file, is the last."""


def sam_file(path: Path) -> Path:
    """Return the file of a SAM, which may be in a folder from the hub."""
    return path / "model.safetensors" if path.is_dir() else path


def read_sam(path: Path) -> dict[str, Tensor]:
    """Read a published SAM, with the keys of our networks.

    Raises CheckpointError if the file is missing or damaged, or lacks what its family needs.
    """
    state = read_state(path)
    family = next(one for one in READ if any(key.startswith(one.keys) for key in ("", *state)))
    with as_published(f"a {family.title}"):
        ours: dict[str, Tensor] = family.module("network").read(state)
    return ours


def family_of(state: Collection[str]) -> Family:
    """Return the family of ``read_sam``'s tensors."""
    return next(one for one in READ if any(key.startswith(one.own_key) for key in ("", *state)))


def sam_config(state: Mapping[str, Tensor]) -> SamClipConfig:
    """Return ``VIT_B`` with the encoder, the frame and the width of ``read_sam``'s tensors.

    Raises CheckpointError if they are not those of a published SAM.
    """
    family = family_of(state)
    with as_published(f"a {family.title}"):
        try:
            described = family.module("network").describe(state)
        except KeyError as error:
            names = ", ".join(name for family in READ for name in family.files)
            raise CheckpointError(
                f"{error} is missing, so this is no SAM that can be read: give {names}, or "
                "model.safetensors of a SAM in transformers' layout"
            ) from None
    return replace(VIT_B, **described)
