"""Read photograph sets in common public layouts as random-access sequences.

    LOCATION/train-00000.tar …      WebDataset shards: KEY.jpg, KEY.json, KEY.txt, KEY.png …
    LOCATION/train/00000.tar …      the same with a folder per split, or without split names
    LOCATION/train/CLASS/*.JPEG     a folder per class (ImageNet)
    LOCATION/*.jpg                  flat or in folders, with or without a KEY.json each (SA-1B)

A location is a path or any fsspec URL. The headers of shards are read once and indexed on disk
(``training.data.index``); afterwards a member is a byte range. Plain folders are listed. Members
that are neighbours in a shard are read at once. A source holds arrays and names but no open file,
so it can be pickled.
"""

import json
import logging
import re
import tarfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import SEEK_END
from typing import Any

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import merge_offset_ranges
from tqdm import tqdm

from samclip_core import guarded
from training.data.index import PHOTOGRAPHS, Group, Index, Member, of_shards
from training.data.sample import Sample, reading

log = logging.getLogger(__name__)

KNOWN = (*PHOTOGRAPHS, "inst.png", "json", "txt", "cls")
SPLITS = {"train", "val", "validation", "test"}
PAUSES = (0.5, 2.0, 8.0)  # seconds before another try of a read that failed
GAP = 256 * 1024  # bytes between two files of a shard that are read rather than asked for anew

Read = Callable[[], Sample]
"""What makes a sample of its files, which have been read."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Samples by index.

    ``shards`` is empty for plain files, whose paths consist of ``folder`` and the key.
    """

    name: str
    location: str
    split: str
    folder: str
    index: Index
    classes: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """Read one sample. Raises BadSample if its json, caption or class cannot be read."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, got index {number}")
        return self.read([number])[0]()

    def read(self, numbers: Sequence[int]) -> list[Read]:
        """Read the files of samples at once, neighbours of a shard in one request.

        Returns what makes each sample; it raises BadSample as indexing does.
        """
        first = self.index.first_N1
        members = [range(first[number], first[number + 1]) for number in numbers]
        contents = dict(self._contents([member for few in members for member in few]))
        return [
            partial(self._made, number, [contents[member] for member in few])
            for number, few in zip(numbers, members, strict=True)
        ]

    def _made(self, number: int, contents: list[bytes]) -> Sample:
        index, key = self.index, self.index.key(number)
        members = slice(index.first_N1[number], index.first_N1[number + 1])
        names = [index.extensions[extension].lower() for extension in index.extension_M[members]]
        folder, slash, _ = key.partition("/")
        class_index = bisect_left(self.classes, folder) if slash and self.classes else -1
        return _sample(self.name, key, dict(zip(names, contents, strict=True)), class_index)

    def _contents(self, members: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the content of files by their numbers."""
        index = self.index
        if not self.shards:
            owner_M = np.searchsorted(index.first_N1, members, side="right") - 1
            names = [index.extensions[index.extension_M[member]] for member in members]
            paths = [
                f"{self.folder}/{index.key(owner)}.{name}"
                for owner, name in zip(owner_M.tolist(), names, strict=True)
            ]
            yield from zip(members, _read(self._system(), paths, None, None), strict=True)
            return
        start_M, size_M = index.offset_M[members].tolist(), index.size_M[members].tolist()
        end_M = [start + size for start, size in zip(start_M, size_M, strict=True)]
        shards = [self.shards[shard] for shard in index.shard_M[members]]
        merged = merge_offset_ranges(shards, start_M, end_M, GAP)
        blocks = sorted(zip(*merged[:2], _read(self._system(), *merged), strict=True))
        places = [block[:2] for block in blocks]
        for member, shard, start, end in zip(members, shards, start_M, end_M, strict=True):
            _, begin, block = blocks[bisect_right(places, (shard, start)) - 1]
            yield member, block[start - begin : end - begin]

    def _system(self) -> AbstractFileSystem:
        """Return the file system; looked up each time, because fsspec caches one per process."""
        return fsspec.url_to_fs(self.location)[0]

    def digest(self) -> str:
        """Return the hex sha256 of the file sizes in shards and of the keys in order.

        While it is unchanged, an index refers to the same photograph.
        """
        return self.index.digest()


def _read(system: AbstractFileSystem, paths: list[str], starts: Any, ends: Any) -> list[bytes]:
    """Read ranges of files, or whole ones; try again after ``PAUSES``.

    Raises OSError after that, FileNotFoundError if a file is gone. File systems return errors among
    the contents, some of them even if told to raise them.
    """
    pauses = iter(PAUSES)
    while True:
        contents = system.cat_ranges(paths, starts, ends, on_error="return")
        if starts is not None:
            ranges = zip(contents, starts, ends, strict=True)
            contents = [_whole(content, end - start) for content, start, end in ranges]
        pairs = zip(paths, contents, strict=True)
        failed = next((pair for pair in pairs if isinstance(pair[1], Exception)), None)
        if failed is None:
            return list(contents)
        url, error = system.unstrip_protocol(failed[0]), failed[1]
        pause = next(pauses, None)
        if pause is None:
            break
        log.warning("%s could not be read (%r): tried again in %g s", url, error, pause)
        time.sleep(pause)
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(
            f"{url} is gone since its set was indexed: put it back, or start the run again, which "
            "indexes the set without it and draws other photographs"
        ) from error
    raise OSError(
        f"{url} could not be read {len(PAUSES) + 1} times ({type(error).__name__}: {error}): "
        "expected a file system that answers and whose files stay"
    ) from error


def _whole(content: bytes | Exception, size: int) -> bytes | Exception:
    """Return a range's content, or an error if it is shorter than the file that was indexed."""
    if isinstance(content, Exception) or len(content) == size:
        return content
    return OSError(f"{len(content)} of {size} bytes: the file has changed since it was indexed")


def open_source(location: str, split: str = "train") -> Source:
    """Open the photographs of one set, ordered by name.

    Raises FileNotFoundError if there are none, or only other splits.
    """
    system, root = fsspec.url_to_fs(location)
    root = root.rstrip("/")
    has_own_folder = system.isdir(f"{root}/{split}")
    folder = f"{root}/{split}" if has_own_folder else root
    details = system.glob(f"{folder}/*.tar", detail=True)
    shards = _of_split(sorted(details), "" if has_own_folder else split)
    if shards:
        chosen = {path: details[path] for path in shards}
        index = of_shards(system, folder, split, chosen, lambda: _scan_all(system, shards))
    else:
        skipped = set() if has_own_folder else SPLITS - {split}
        index = Index.of(_walk(system, folder, skipped))
    if not len(index):
        raise FileNotFoundError(
            f"no shards {split}-*.tar in {location}, nor any photographs in shards without a "
            f"split, in {split}/ or as plain files"
        )
    return Source(
        name=root.rsplit("/", 1)[-1],
        location=location,
        split=split,
        folder=folder,
        index=index,
        # With json files, the folders are not classes.
        classes=() if shards or "json" in index.extensions else index.outermost,
        shards=tuple(shards),
    )


def _walk(system: AbstractFileSystem, root: str, skipped: set[str]) -> Iterator[Group]:
    """Yield the samples of plain folders; files that differ only in extension form a sample."""
    listed = list[tuple[str, list[str]]]()
    for folder, inner, names in system.walk(root):
        if folder == root:
            inner[:] = [name for name in inner if name not in skipped]
        listed.append((folder, names))
    for folder, names in sorted(listed):
        inside = folder[len(root) :].strip("/")
        groups: dict[str, list[Member]] = {}
        for name in sorted(names):
            stem, _, extension = name.rpartition(".")
            if extension.lower() in KNOWN:
                key = f"{inside}/{stem}" if inside else stem
                groups.setdefault(key, []).append(Member(extension))
        yield from groups.items()


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


def _of_split(shards: Sequence[str], split: str) -> list[str]:
    """Return the shards that name the split, or all of them if none names any split."""
    words = {path: set(re.split(r"[-_.]", path.rsplit("/", 1)[-1])) for path in shards}
    if not split or not any(SPLITS & named for named in words.values()):
        return [*shards]
    return [path for path in shards if split in words[path]]


def _scan_all(system: AbstractFileSystem, shards: Sequence[str]) -> Iterator[Group]:
    """Yield the samples of all shards in order, and show the progress of a long scan."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        scanned = pool.map(lambda numbered: _scan(system, *numbered), enumerate(shards))
        for groups in tqdm(
            scanned, "index of the shards", len(shards), unit="shard", delay=5, mininterval=5
        ):
            yield from groups


def _opened(system: AbstractFileSystem, path: str) -> Any:
    local = isinstance(system, LocalFileSystem)
    return guarded.open_regular(path) if local else system.open(path, "rb")


def _scan(system: AbstractFileSystem, number: int, path: str) -> list[Group]:
    """Return the samples of a shard; for a damaged one, warn and return those before the damage."""
    groups: dict[str, list[Member]] = {}
    key, whole = "", False
    with _opened(system, path) as file:
        length = file.seek(0, SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                last = -1
                for member in tar:
                    if member.offset <= last or member.size < 0:
                        raise tarfile.ReadError("a member of a negative size")
                    last = member.offset
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, extension = name.partition(".")
                    if not member.isfile() or extension.lower() not in KNOWN:
                        continue
                    key = f"{folder}{slash}{stem}"
                    place = Member(extension, number, member.offset_data, member.size)
                    groups.setdefault(key, []).append(place)
                # tarfile treats a damaged or missing header as the end of the archive.
                file.seek(tar.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except (tarfile.TarError, ValueError, OverflowError, MemoryError):
            whole = False  # numbers that no writer has meant
    if not whole:
        _drop_incomplete(groups, key, length)
        log.warning(
            "%s is damaged or truncated: only its first %d samples are used", path, len(groups)
        )
    return list(groups.items())


def _drop_incomplete(groups: dict[str, list[Member]], last: str, length: int) -> None:
    """Drop the last sample of a truncated shard unless it has the same files as the first one."""
    members = [m for m in groups.pop(last, []) if m.offset + m.size <= length]
    first = next(iter(groups.values()), [])
    if members and {m.extension for m in members} == {m.extension for m in first}:
        groups[last] = members
