"""Read photograph sets in common public layouts as random-access sequences.

    LOCATION/train-00000.tar …      WebDataset shards: KEY.jpg, KEY.json, KEY.txt, KEY.png …
    LOCATION/train/00000.tar …      the same with a folder per split, or without split names
    LOCATION/train/CLASS/*.JPEG     a folder per class (ImageNet)
    LOCATION/*.jpg                  flat or in folders, with or without a KEY.json each (SA-1B)

A location is a path or any fsspec URL. Shard headers are read once, when the source is opened;
afterwards a member is a byte range. A source holds arrays and names but no open file, so it can be
forked and pickled: open it once and send it to every worker.
"""

import hashlib
import json
import logging
import re
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import SEEK_END
from typing import Any, NamedTuple

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from training.data.sample import Sample, reading

log = logging.getLogger(__name__)

PHOTOGRAPHS = ("jpg", "jpeg", "webp", "png")  # a png next to one of the others is a label map
KNOWN = (*PHOTOGRAPHS, "inst.png", "json", "txt", "cls")
SPLITS = {"train", "val", "validation", "test"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Samples by index. N samples, M files; sample i has files ``first_N1[i]:first_N1[i + 1]``.

    Takes about 75 bytes per sample in shards. ``shards`` is empty for plain files, whose paths
    consist of ``folder`` and the key.
    """

    name: str
    location: str
    folder: str
    keys_N: NDArray[Any]
    first_N1: NDArray[np.int64]
    extension_M: NDArray[np.uint8]
    extensions: tuple[str, ...]
    classes: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    shard_M: NDArray[np.uint32]
    offset_M: NDArray[np.uint64]
    size_M: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys_N)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample. Raises BadSample if its json, caption or class cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, got index {index}")
        members = range(self.first_N1[index], self.first_N1[index + 1])
        key = str(self.keys_N[index])
        names = [self.extensions[self.extension_M[m]] for m in members]
        starts: list[int] | None = None
        ends: list[int] | None = None
        if self.shards:
            paths = [self.shards[self.shard_M[m]] for m in members]
            starts = [int(self.offset_M[m]) for m in members]
            ends = [int(self.offset_M[m]) + int(self.size_M[m]) for m in members]
        else:
            paths = [f"{self.folder}/{key}.{name}" for name in names]
        # Looked up for every sample, because fsspec caches one file system per process.
        system, _ = fsspec.url_to_fs(self.location)
        contents = system.cat_ranges(paths, starts, ends, on_error="raise")
        files = dict(zip(map(str.lower, names), contents, strict=True))
        folder, slash, _ = key.partition("/")
        class_index = bisect_left(self.classes, folder) if slash and self.classes else -1
        return _sample(self.name, key, files, class_index)

    def digest(self) -> str:
        """Return the hex sha256 of the keys in order and of the file sizes in shards.

        While it is unchanged, an index refers to the same photograph.
        """
        digest = hashlib.sha256(self.size_M.tobytes())
        for key in self.keys_N:
            digest.update(f"{key}\n".encode())
        return digest.hexdigest()


def open_source(location: str, split: str = "train") -> Source:
    """Open the photographs of one set, ordered by name.

    Raises FileNotFoundError if there are none, or only other splits.
    """
    system, root = fsspec.url_to_fs(location)
    root = root.rstrip("/")
    has_own_folder = system.isdir(f"{root}/{split}")
    folder = f"{root}/{split}" if has_own_folder else root
    shards = _of_split(sorted(system.glob(f"{folder}/*.tar")), "" if has_own_folder else split)
    if shards:
        with ThreadPoolExecutor(max_workers=8) as pool:
            scanned = pool.map(lambda numbered: _scan(system, *numbered), enumerate(shards))
            index = _index(group for groups in scanned for group in groups)
    else:
        index = _index(_walk(system, folder, set() if has_own_folder else SPLITS - {split}))
    if not len(index["keys_N"]):
        raise FileNotFoundError(
            f"no shards {split}-*.tar in {location}, nor any photographs in shards without a "
            f"split, in {split}/ or as plain files"
        )
    name = root.rsplit("/", 1)[-1]
    classes = () if shards else _classes(index)
    return Source(
        name=name, location=location, folder=folder, shards=tuple(shards), classes=classes, **index
    )


def _of_split(shards: list[str], split: str) -> list[str]:
    """Return the shards that name the split, or all of them if none names any split."""
    words = {path: set(re.split(r"[-_.]", path.rsplit("/", 1)[-1])) for path in shards}
    if not split or not any(SPLITS & named for named in words.values()):
        return shards
    return [path for path in shards if split in words[path]]


class _Member(NamedTuple):
    extension: str
    shard: int = 0
    offset: int = 0
    size: int = 0


_Group = tuple[str, list[_Member]]


def _scan(system: AbstractFileSystem, number: int, path: str) -> list[_Group]:
    """Return the samples of a shard; for a damaged one, warn and return those before the damage."""
    groups: dict[str, list[_Member]] = {}
    key, whole = "", False
    with system.open(path, "rb") as file:
        length = file.seek(0, SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, extension = name.partition(".")
                    if not member.isfile() or extension.lower() not in KNOWN:
                        continue
                    key = f"{folder}{slash}{stem}"
                    place = _Member(extension, number, member.offset_data, member.size)
                    groups.setdefault(key, []).append(place)
                # tarfile treats a damaged or missing header as the end of the archive.
                file.seek(tar.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except tarfile.ReadError:
            pass
    if not whole:
        _drop_incomplete(groups, key, length)
        log.warning(
            "%s is damaged or truncated: only its first %d samples are used", path, len(groups)
        )
    return list(groups.items())


def _drop_incomplete(groups: dict[str, list[_Member]], last: str, length: int) -> None:
    """Drop the last sample of a truncated shard unless it has the same files as the first one."""
    members = [m for m in groups.pop(last, []) if m.offset + m.size <= length]
    first = next(iter(groups.values()), [])
    if members and {m.extension for m in members} == {m.extension for m in first}:
        groups[last] = members


def _walk(system: AbstractFileSystem, root: str, skipped: set[str]) -> Iterator[_Group]:
    """Yield the samples of plain folders; files that differ only in extension form a sample."""
    for folder, _, names in sorted(system.walk(root)):
        inside = folder[len(root) :].strip("/")
        if inside.partition("/")[0] in skipped:
            continue
        groups: dict[str, list[_Member]] = {}
        for name in sorted(names):
            stem, _, extension = name.rpartition(".")
            if extension.lower() in KNOWN:
                key = f"{inside}/{stem}" if inside else stem
                groups.setdefault(key, []).append(_Member(extension))
        yield from groups.items()


def _index(groups: Iterable[_Group]) -> dict[str, Any]:
    """Return the samples that have a photograph, as the arrays of a Source."""
    keys: list[str] = []
    extensions: dict[str, int] = {}
    first, extension_M = array("q", [0]), array("B")
    shard_M, offset_M, size_M = array("I"), array("Q"), array("I")
    for key, members in groups:
        if not any(member.extension.lower() in PHOTOGRAPHS for member in members):
            continue
        keys.append(key)
        for member in members:
            extension_M.append(extensions.setdefault(member.extension, len(extensions)))
            shard_M.append(member.shard)
            offset_M.append(member.offset)
            size_M.append(member.size)
        first.append(len(extension_M))
    return {
        "keys_N": np.array(keys, np.dtypes.StringDType()),
        "first_N1": np.array(first),
        "extension_M": np.array(extension_M),
        "extensions": tuple(extensions),
        "shard_M": np.array(shard_M),
        "offset_M": np.array(offset_M),
        "size_M": np.array(size_M),
    }


def _classes(index: dict[str, Any]) -> tuple[str, ...]:
    """Return the sorted names of the outermost folders; with json files, they are not classes."""
    if "json" in index["extensions"]:
        return ()
    return tuple(sorted({str(k).partition("/")[0] for k in index["keys_N"] if "/" in k}))


def _sample(source: str, key: str, files: dict[str, bytes], class_index: int) -> Sample:
    """Build a sample from its files by extension; a caption in txt or json becomes ``captions``."""
    encoded = next(files.pop(extension) for extension in PHOTOGRAPHS if extension in files)
    with reading(source, key, "its json, caption or class cannot be read"):
        info = json.loads(files.get("json", b"{}"))
        if not isinstance(info, dict):
            raise TypeError("the json is not an object")
        caption = files["txt"].decode().strip() if "txt" in files else info.get("caption")
        class_index = int(files.get("cls", class_index))
    if isinstance(caption, str):
        info.setdefault("captions", [caption])
    return Sample(
        key=key,
        source=source,
        encoded=encoded,
        info=info,
        label_png=files.get("png", b""),
        instance_png=files.get("inst.png", b""),
        class_index=class_index,
    )
