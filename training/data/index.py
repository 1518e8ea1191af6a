"""The index of a set: which files belong to which sample, and where they are in the shards.

Reading the headers of millions of files takes hours, so the index of a set in shards is kept on
disk and mapped into memory. All processes of a machine share it.

    PLACE/SPLIT-FINGERPRINT/index.json     extensions, and a checksum of each array
    PLACE/SPLIT-FINGERPRINT/NAME.npy       the arrays of an ``Index``

PLACE is ``.samclip-index`` beside the shards, or a folder in ``~/.cache/samclip`` for URLs and
read-only folders. The fingerprint covers the names, sizes and modification times of the shards.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

log = logging.getLogger(__name__)

PHOTOGRAPHS = ("jpg", "jpeg", "webp", "png")  # a png next to one of the others is a label map
_BESIDE = ".samclip-index"
_STAMPS = ("mtime", "LastModified", "last_modified", "updated")  # names in fsspec's file systems


class Member(NamedTuple):
    """A file of a sample; in a shard, ``size`` bytes at ``offset`` of shard number ``shard``."""

    extension: str
    shard: int = 0
    offset: int = 0
    size: int = 0


Group = tuple[str, list[Member]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """The files of N samples, M in total; sample i has files ``first_N1[i]:first_N1[i + 1]``.

    Its key is ``text_K[key_N1[i]:key_N1[i + 1]]`` in UTF-8, with a newline at the end. A sample
    with three files takes about 80 bytes.
    """

    text_K: NDArray[np.uint8]
    key_N1: NDArray[np.int64]
    first_N1: NDArray[np.int64]
    extension_M: NDArray[np.uint8]
    shard_M: NDArray[np.uint32]
    offset_M: NDArray[np.uint64]
    size_M: NDArray[np.uint32]
    extensions: tuple[str, ...]

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "Index":
        """Return the index of those samples that have a photograph."""
        text, key, first = bytearray(), array("q", [0]), array("q", [0])
        extensions: dict[str, int] = {}
        extension_M, shard_M = array("B"), array("I")
        offset_M, size_M = array("Q"), array("I")
        for name, members in groups:
            if not any(member.extension.lower() in PHOTOGRAPHS for member in members):
                continue
            text += f"{name}\n".encode(errors="surrogateescape")
            for member in members:
                extension_M.append(extensions.setdefault(member.extension, len(extensions)))
                shard_M.append(member.shard)
                offset_M.append(member.offset)
                size_M.append(member.size)
            key.append(len(text))
            first.append(len(extension_M))
        return cls(
            text_K=np.asarray(text, np.uint8),
            key_N1=np.asarray(key),
            first_N1=np.asarray(first),
            extension_M=np.asarray(extension_M),
            shard_M=np.asarray(shard_M),
            offset_M=np.asarray(offset_M),
            size_M=np.asarray(size_M),
            extensions=tuple(extensions),
        )

    def __len__(self) -> int:
        return len(self.first_N1) - 1

    def key(self, index: int) -> str:
        """Return a sample's key."""
        text = self.text_K[self.key_N1[index] : self.key_N1[index + 1] - 1]
        return text.tobytes().decode(errors="surrogateescape")

    def digest(self) -> str:
        """Return the hex sha256 of the file sizes and of the keys in order."""
        digest = hashlib.sha256(self.size_M.data)
        digest.update(self.text_K.data)
        return digest.hexdigest()


def of_shards(
    system: AbstractFileSystem,
    folder: str,
    split: str,
    shards: Mapping[str, Mapping[str, Any]],
    scan: Callable[[], Iterable[Group]],
) -> Index:
    """Return the stored index of ``shards`` (fsspec's details by path), or ``scan`` and store it.

    Of several processes on a machine, one scans and the others wait for it. A stored index of
    changed shards, or a damaged one, is replaced.
    """
    name = f"{split}-{_fingerprint(shards)}"
    places = _places(system, folder)
    for place in places:
        if found := _load(place / name):
            return found
    for place in places:
        if not _writable(place):
            continue
        with _locked(place):
            if found := _load(place / name):  # written by another process while this one waited
                return found
            index = Index.of(scan())
            if len(index):
                _store(index, place, split, name)
        return _load(place / name) or index
    log.warning(
        "the index of %s cannot be stored in any of %s: every process scans the shards",
        folder,
        ", ".join(map(str, places)),
    )
    return Index.of(scan())


def _fingerprint(shards: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a hash of the shards' names, sizes and, where there are any, modification times."""
    facts = [
        (
            path.rsplit("/", 1)[-1],
            details["size"],
            next((str(details[stamp]) for stamp in _STAMPS if stamp in details), ""),
        )
        for path, details in shards.items()
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _places(system: AbstractFileSystem, folder: str) -> list[Path]:
    """Return the folders that may hold the index, the preferred one first."""
    location = hashlib.sha256(system.unstrip_protocol(folder).encode()).hexdigest()[:16]
    cache = Path.home() / ".cache/samclip/index" / location
    beside = [Path(folder) / _BESIDE] if isinstance(system, LocalFileSystem) else []
    return [*beside, cache]


def _writable(place: Path) -> bool:
    """Try to create ``place``; a parent folder marked read-only is left alone, even by root."""
    parent = next(path for path in place.parents if path.exists())
    if not place.exists() and not parent.stat().st_mode & 0o222:
        return False
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _store(index: Index, place: Path, split: str, name: str) -> None:
    """Write ``index`` to ``place``; log disk errors. Beside the shards, remove the split's others.

    In the cache folder, those may belong to copies of the shards on other machines' disks.
    """
    partial = place / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    checksums = {}
    try:
        for field, values in vars(index).items():
            if isinstance(values, np.ndarray):
                np.save(partial / f"{field}.npy", values)
                checksums[field] = zlib.crc32(values.data)
        content = {"extensions": index.extensions, "checksums": checksums}
        (partial / "index.json").write_text(json.dumps(content))
        for old in place.glob(f"{split}-*" if place.name == _BESIDE else name):
            shutil.rmtree(old)
        partial.rename(place / name)
    except OSError as error:
        log.warning("the index of the shards could not be stored in %s: %s", place, error)
        shutil.rmtree(partial, ignore_errors=True)


@lru_cache(maxsize=64)
def _verified(folder: Path) -> Index:
    """Map a stored index into memory. Raises OSError, ValueError or KeyError if it is damaged."""
    content = json.loads((folder / "index.json").read_text())
    arrays = {}
    for field, checksum in content["checksums"].items():
        arrays[field] = np.load(folder / f"{field}.npy", mmap_mode="r")
        if zlib.crc32(arrays[field].data) != checksum:
            raise ValueError(f"{field}.npy does not match its checksum")
    return Index(extensions=tuple(content["extensions"]), **arrays)


def _load(folder: Path) -> Index | None:
    """Return the index stored in ``folder``, or None if there is none or it is damaged."""
    if not folder.exists():
        return None
    try:
        return _verified(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): the shards are scanned again", folder, error)
        return None
