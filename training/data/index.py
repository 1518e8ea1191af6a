"""The index of a set: which files belong to which sample, and where they are in the shards.

Indexes of shards are kept on disk and mapped into memory, because reading millions of headers takes
hours. All processes of a machine share an index.

    PLACE/NAME/index.json     extensions, folders, and a checksum of each array
    PLACE/NAME/FIELD.npy      the arrays of an ``Index``

The PLACE is a folder for the set's location in the user's cache: ``~/.cache/samclip``, or
``$XDG_CACHE_HOME/samclip``, which nodes may share. The NAME covers the names, sizes and
modification times of the shards.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from samclip_core import guarded

log = logging.getLogger(__name__)

PHOTOGRAPHS = ("jpg", "jpeg", "webp", "png")  # a png next to one of the others is a label map
_TEXTS = "extensions", "outermost"
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
    with three files takes about 80 bytes. ``outermost`` are the sorted names of the outermost
    folders of the keys. ``folder`` is where it is stored, if it is.
    """

    text_K: NDArray[np.uint8]
    key_N1: NDArray[np.int64]
    first_N1: NDArray[np.int64]
    extension_M: NDArray[np.uint8]
    shard_M: NDArray[np.uint32]
    offset_M: NDArray[np.uint64]
    size_M: NDArray[np.uint32]
    extensions: tuple[str, ...]
    outermost: tuple[str, ...] = ()
    folder: Path | None = None

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a stored index as its folder, and another one whole."""
        return super().__reduce__() if self.folder is None else (_reopened, (self.folder,))

    @classmethod
    def of(cls, groups: Iterable[Group]) -> "Index":
        """Return the index of those samples that have a photograph."""
        text, key, first = bytearray(), array("q", [0]), array("q", [0])
        extensions: dict[str, int] = {}
        outermost: set[str] = set()
        extension_M, shard_M = array("B"), array("I")
        offset_M, size_M = array("Q"), array("I")
        for name, members in groups:
            if not any(member.extension.lower() in PHOTOGRAPHS for member in members):
                continue
            if "/" in name:
                outermost.add(name.partition("/")[0])
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
            outermost=tuple(sorted(outermost)),
        )

    def __len__(self) -> int:
        return len(self.first_N1) - 1

    def key(self, index: int) -> str:
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
    name, place = f"{split}-{_fingerprint(shards)}", _cache(system, folder)
    if stored := _load(place / name):
        return stored
    try:
        lock = _locked(place)
    except OSError as error:
        log.warning(
            "the index of the photographs cannot be stored in %s (%s): every process makes its own",
            *(place, error),
        )
        return Index.of(scan())
    with lock:
        if stored := _load(place / name):  # written by another process while this one waited
            return stored
        made = Index.of(scan())
        if len(made) and _store(made, place, name):
            return _load(place / name) or made
        return made


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


def _cache(system: AbstractFileSystem, folder: str) -> Path:
    location = hashlib.sha256(system.unstrip_protocol(folder).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "samclip/index" / location


def _locked(place: Path) -> IO[str]:
    """Create ``place`` and return its locked file, to be closed. Raises OSError if that fails."""
    place.mkdir(parents=True, exist_ok=True)
    file = (place / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        file.close()
        raise
    return file


def _store(index: Index, place: Path, name: str) -> bool:
    """Write ``index`` to ``place`` and return whether that worked; log disk errors.

    Other indexes there may belong to copies of the shards on other machines' disks.
    """
    partial = place / f".{name}.partial"
    checksums = {}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for array, values in vars(index).items():
            if isinstance(values, np.ndarray):
                np.save(partial / f"{array}.npy", values)
                checksums[array] = zlib.crc32(values.data)
        content = {key: getattr(index, key) for key in _TEXTS} | {"checksums": checksums}
        (partial / "index.json").write_text(json.dumps(content))
        shutil.rmtree(place / name, ignore_errors=True)
        partial.rename(place / name)
    except OSError as error:
        log.warning("the index of the photographs could not be stored in %s: %s", place, error)
        shutil.rmtree(partial, ignore_errors=True)
        return False
    return True


@lru_cache(maxsize=64)
def _verified(folder: Path) -> Index:
    """Map a stored index into memory. Raises OSError, ValueError or KeyError if it is damaged."""
    index = _mapped(folder)
    for name, checksum in _content(folder)["checksums"].items():
        if zlib.crc32(getattr(index, name).data) != checksum:
            raise ValueError(f"{name}.npy does not match its checksum")
    return index


def _reopened(folder: Path) -> Index:
    try:
        return _mapped(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder}, the index of the photographs, is gone. Start the run again, which makes it "
            "anew and, if the photographs have changed, draws others"
        ) from None


def _content(folder: Path) -> Any:
    return guarded.read_json(folder / "index.json", values=sys.maxsize)


def _mapped(folder: Path) -> Index:
    content = _content(folder)
    names = content["checksums"]
    arrays = {name: guarded.mapped(folder / f"{name}.npy") for name in names}
    extensions, outermost = (content[key] for key in _TEXTS)
    return Index(
        extensions=tuple(extensions),
        outermost=tuple(outermost),
        folder=folder,
        **arrays,
    )


def _load(folder: Path) -> Index | None:
    """Return the index stored in ``folder``, or None if there is none or it is damaged."""
    try:
        if not folder.exists():
            return None
        return _verified(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%r): it is made again", folder, error)
        return None
