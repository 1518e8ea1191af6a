"""Read the published weights of official models."""

import io
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from samclip_core.errors import CheckpointError
from samclip_core.io.shapes import compare_shapes
from samclip_core.io.torchscript import is_archive, read_archive

MOST_SHARED = 2
"""Times that the bytes of a file may be used by its tensors: some share theirs."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth, .safetensors or TorchScript file, without running code from it.

    Wrappers that training scripts put around a state dict (``state_dict``, ``module.``) are
    removed. Raises CheckpointError if the file is missing or damaged, or contains other objects.
    """
    if path.suffix == ".safetensors":
        state = loaded(path, load_file)
    else:
        state = loaded(path, read_archive if is_archive(path) else load_pickle)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a state dict: expected tensors by name")
    stated, size = sum(value.nbytes for value in state.values()), path.stat().st_size
    if stated > MOST_SHARED * size:
        raise CheckpointError(f"{path} states tensors of {stated:,} bytes, and has {size:,}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_pickle(path: Path) -> Any:
    """Read a file of ``torch.save`` that has tensors and plain values.

    Tensors of a zip stay in the file until they are used: its entries may overlap.
    """
    with _Plain(open(path, "rb", buffering=0)) as file:
        if file.peek(4)[:4] == b"PK\3\4":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(file, map_location="cpu", weights_only=True)


class _Plain(io.BufferedReader):
    """A file without a descriptor: torch takes one with a descriptor for a tar first."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def loaded(path: Path, load: Callable[[Path], Any]) -> Any:
    """Return what ``load`` reads. Raises CheckpointError if the file is missing or unreadable."""
    if not path.is_file():
        raise CheckpointError(f"no file {path}: give the path of the downloaded weights")
    try:
        return load(path)
    except Exception as error:  # damaged files raise errors of any kind
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}): it is damaged, or "
            "its download is not complete, or it has other objects, which may run code and are "
            "never loaded; download the publisher's file again"
        ) from error


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
