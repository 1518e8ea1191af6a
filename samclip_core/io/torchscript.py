"""Read the tensors of a TorchScript archive, such as OpenAI's ViT-L-14.pt, and run no code from it.

``torch.jit.load`` would run the archive's programs, and ``torch.load`` refuses archives. Without
its programs and constants, an archive is a pickle of modules, whose tensors torch's restricted
unpickler reads once it knows the modules' names.
"""

import io
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

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
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise pickle.UnpicklingError(f"{name} is compressed, unlike tensors")
                copy.writestr(name, archive.read(name))
    pickled.seek(0)
    names = get_unsafe_globals_in_checkpoint(pickled)
    pickled.seek(0)
    modules: list[Any] = [(_Module, name) for name in names if name.startswith("__torch__.")]
    with safe_globals(modules):
        return dict(_tensors("", torch.load(pickled, map_location="cpu", weights_only=True)))


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
