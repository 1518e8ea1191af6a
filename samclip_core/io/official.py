"""Read the published weights of official models."""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samclip_core.errors import CheckpointError
from samclip_core.io.shapes import compare_shapes
from samclip_core.io.torchscript import is_archive, read_archive

_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth, .safetensors or TorchScript file, without running code from it.

    Wrappers that training scripts put around a state dict (``state_dict``, ``module.``) are
    removed. Raises CheckpointError if the file is missing or damaged, or contains other objects.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_archive(path):
            return read_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}: give the path of the downloaded weights") from None
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}): give a .pth "
            "or .safetensors state dict, or a TorchScript archive, not a pickled model"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a state dict: expected tensors by name")
    return {key.removeprefix("module."): value for key, value in state.items()}


def renamed(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Replace patterns in keys, each in turn; a key that becomes empty is left out."""
    tensors = {}
    for key, value in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        if key:
            tensors[key] = value
    return tensors


def fill(module: nn.Module, state: Mapping[str, Tensor], file: Path, architecture: str) -> None:
    """Copy a state dict into a module. Raises CheckpointError unless keys and shapes match."""
    compare_shapes(
        file.name,
        {key: list(value.shape) for key, value in state.items()},
        {key: list(value.shape) for key, value in module.state_dict().items()},
        architecture,
    )
    module.load_state_dict(state)
