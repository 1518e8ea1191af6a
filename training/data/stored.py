"""Indexes on disk, mapped into memory: reading millions of names or headers takes hours.

All processes of a machine share an index.

    PLACE/NAME/index.json     extensions, folders, and a checksum of each array
    PLACE/NAME/FIELD.npy      the arrays of an ``Index``

The PLACE of shards is ``.samclip-index`` beside them or, for URLs and read-only folders, a folder
in the cache: ``~/.cache/samclip``, or ``$XDG_CACHE_HOME/samclip``, which nodes may share. Their
NAME covers the names, sizes and modification times of the shards. An index of plain folders is in
the cache alone, because other tools take a folder beside photographs for a class. It holds as long
as none of the folders has changed.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from training.data.index import Group, Index

log = logging.getLogger(__name__)

_BESIDE = ".samclip-index"
_TEXTS = "extensions", "outermost", "changed"
_STAMPS = ("mtime", "LastModified", "last_modified", "updated")  # names in fsspec's file systems


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
    beside = [Path(folder) / _BESIDE] if isinstance(system, LocalFileSystem) else []
    places = [*beside, _cache(system, folder)]
    return _kept(places, lambda place: _load(place / name), split, lambda: (name, Index.of(scan())))


Walk = Callable[[dict[str, int]], Iterable[Group]]
"""Yields the samples of plain folders, and fills in when each folder was changed last."""


def of_folders(system: AbstractFileSystem, folder: str, split: str, walk: Walk) -> Index:
    """Return the stored index of plain folders on a disk, or ``walk`` them and store it.

    Folders at a URL have no reliable times of change: they are walked each time.
    """
    if not isinstance(system, LocalFileSystem):
        return Index.of(walk({}))

    def valid(place: Path) -> Index | None:
        found = (_load(path) for path in place.glob(f"{split}-folders-*"))
        return next((index for index in found if index and _unchanged(index)), None)

    def make() -> tuple[str, Index]:
        changed: dict[str, int] = {}
        index = Index.of(walk(changed), changed)
        return f"{split}-folders-{_hash(changed)}", index

    return _kept([_cache(system, folder)], valid, split, make)


def _unchanged(index: Index) -> bool:
    try:
        return all(os.stat(path).st_mtime_ns == time for path, time in index.changed.items())
    except OSError:
        return False


def _kept(
    places: list[Path],
    valid: Callable[[Path], Index | None],
    split: str,
    make: Callable[[], tuple[str, Index]],
) -> Index:
    """Return a valid index of the first place that has one; otherwise make it and store it."""
    for place in places:
        if found := valid(place):
            return found
    made = None
    for place in places:
        try:
            lock = _locked(place)
        except OSError as error:
            log.info("no index in %s: %s", place, error)
            continue
        with lock:
            if found := valid(place):  # written by another process while this one waited
                return found
            name, index = made = made or make()
            if not len(index) or not all(index.changed.values()):  # it would not be valid
                return index
            if _store(index, place, split, name):
                return _load(place / name) or index
    log.warning(
        "the index of the photographs cannot be stored in any of %s: every process makes its own",
        ", ".join(map(str, places)),
    )
    return (made or make())[1]


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
    return _hash(facts)


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _cache(system: AbstractFileSystem, folder: str) -> Path:
    location = hashlib.sha256(system.unstrip_protocol(folder).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "samclip/index" / location


def _locked(place: Path) -> IO[str]:
    """Create ``place`` and return its locked file, to be closed. Raises OSError if that fails.

    A parent folder marked read-only is left alone, even by root. Some file systems have no locks.
    """
    parent = next(path for path in place.parents if path.exists())
    if not place.exists() and not parent.stat().st_mode & 0o222:
        raise PermissionError(f"{parent} is read-only")
    place.mkdir(parents=True, exist_ok=True)
    file = (place / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        file.close()
        raise
    return file


def _store(index: Index, place: Path, split: str, name: str) -> bool:
    """Write ``index`` to ``place`` and return whether that worked; log disk errors.

    Older indexes of the split are removed; in the cache folder only those of plain folders, because
    others may belong to copies of the shards on other machines' disks.
    """
    partial = place / f".{name}.partial"
    checksums = {}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for field, values in vars(index).items():
            if isinstance(values, np.ndarray):
                np.save(partial / f"{field}.npy", values)
                checksums[field] = zlib.crc32(values.data)
        content = {key: getattr(index, key) for key in _TEXTS} | {"checksums": checksums}
        (partial / "index.json").write_text(json.dumps(content))
        of_folders = f"{split}-folders-*" if index.changed else name
        for old in place.glob(f"{split}-*" if place.name == _BESIDE else of_folders):
            shutil.rmtree(old)
        partial.rename(place / name)
    except OSError as error:
        log.warning("the index of the photographs could not be stored in %s: %s", place, error)
        shutil.rmtree(partial, ignore_errors=True)
        return False
    return True


@lru_cache(maxsize=64)
def _verified(folder: Path) -> Index:
    """Map a stored index into memory. Raises OSError, ValueError or KeyError if it is damaged."""
    content = json.loads((folder / "index.json").read_text())
    arrays = {}
    for field, checksum in content["checksums"].items():
        arrays[field] = np.load(folder / f"{field}.npy", mmap_mode="r")
        if zlib.crc32(arrays[field].data) != checksum:
            raise ValueError(f"{field}.npy does not match its checksum")
    extensions, outermost, changed = (content[key] for key in _TEXTS)
    return Index(
        extensions=tuple(extensions), outermost=tuple(outermost), changed=changed, **arrays
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
