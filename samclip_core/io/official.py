"""Read the published weights of official models, and run no code from them.

``torch.jit.load`` would run the programs of a TorchScript archive, such as OpenAI's ViT-L-14.pt,
and ``torch.load`` refuses archives. Without its programs and constants, an archive is a pickle of
modules, whose tensors torch's restricted unpickler reads once it knows the modules' names.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from samclip_core.errors import CheckpointError
from samclip_core.io.shapes import compare_shapes, shapes_of

MOST_SHARED = 2
"""Times that the bytes of a file may be used by its tensors: some share theirs."""


@contextmanager
def as_published(model: str) -> Iterator[None]:
    """Raise CheckpointError for what tensors of other shapes than a published model's cause."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"a tensor is missing or has another shape than in {model} ({error}): download the "
            "file again"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth, .safetensors or TorchScript file, without running code from it.

    Wrappers that publishers put around a state dict (``state_dict``, ``model``, ``module.``) are
    removed. Raises CheckpointError if the file is missing or damaged, or contains other objects.
    """
    state = loaded(path, load_file if path.suffix == ".safetensors" else _load)
    if isinstance(state, dict):
        state = state.get("state_dict", state.get("model", state))
    return checked(path, state)


def _load(path: Path) -> Any:
    return read_archive(path) if is_archive(path) else load_pickle(path)


def checked(path: Path, state: Any) -> dict[str, Tensor]:
    """Return a file's state dict. Raises CheckpointError for others, and for too many bytes."""
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a state dict: expected tensors by name")
    stated, size = sum(value.nbytes for value in state.values()), path.stat().st_size
    if stated > MOST_SHARED * size:
        raise CheckpointError(f"{path} states tensors of {stated:,} bytes, and has {size:,}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_pickle(path: Path) -> Any:
    """Read a zip of ``torch.save`` that has tensors and plain values.

    Tensors stay in the file until they are used: entries of the zip may overlap. torch refuses to
    map files of before 2020, which are no zips and in which it would look for a tar first.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive.infolist())
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


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
            "never loaded: download the publisher's file again. Or its format is older than torch "
            "1.6: load and save it again with torch"
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


def check(
    make: Callable[[], nn.Module], state: Mapping[str, Tensor], file: str, architecture: str
) -> None:
    """Raise CheckpointError unless keys and shapes of a file are those of a module.

    The module takes no memory: a small file may state the sizes of a large network.
    """
    shapes = {key: list(value.shape) for key, value in state.items()}
    compare_shapes(file, shapes, shapes_of(make), architecture)


HEADER_BYTES = 30
"""Of an entry of a zip, at least."""


class _Module:
    """Any module of an archive: only its attributes."""


def is_archive(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name.

    Raises pickle.UnpicklingError if it holds objects other than modules, or entries that overlap.
    """
    pickled = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(pickled, "w") as copy:
        _check_places(archive.infolist(), path.stat().st_size)
        for entry in archive.infolist():
            name = entry.filename
            if "/code/" not in name and not name.endswith("/constants.pkl"):
                _check_stored([entry])
                copy.writestr(name, archive.read(name))
    pickled.seek(0)
    names = get_unsafe_globals_in_checkpoint(pickled)
    pickled.seek(0)
    modules: list[Any] = [(_Module, name) for name in names if name.startswith("__torch__.")]
    with safe_globals(modules):
        return dict(_tensors("", torch.load(pickled, map_location="cpu", weights_only=True)))


def _check_stored(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise UnpicklingError for a compressed entry: it may be of any size."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{entry.filename} is compressed, unlike tensors")


def _check_places(entries: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Raise UnpicklingError if entries share bytes of the file: a small one may state gigabytes."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise pickle.UnpicklingError(f"{entry.filename} overlaps another entry")
        end = entry.header_offset + HEADER_BYTES + entry.compress_size
        if max(end, entry.file_size) > size:
            raise pickle.UnpicklingError(f"{entry.filename} is larger than the file")


def _tensors(prefix: str, module: object) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
        elif isinstance(value, _Module):
            yield from _tensors(f"{prefix}{name}.", value)
