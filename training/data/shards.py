"""Read the headers of WebDataset shards: the files of every sample, and their places."""

import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import SEEK_END

from fsspec import AbstractFileSystem
from tqdm import tqdm

from training.data.index import PHOTOGRAPHS, Group, Member

log = logging.getLogger(__name__)

KNOWN = (*PHOTOGRAPHS, "inst.png", "json", "txt", "cls")
SPLITS = {"train", "val", "validation", "test"}


def of_split(shards: Sequence[str], split: str) -> list[str]:
    """Return the shards that name the split, or all of them if none names any split."""
    words = {path: set(re.split(r"[-_.]", path.rsplit("/", 1)[-1])) for path in shards}
    if not split or not any(SPLITS & named for named in words.values()):
        return [*shards]
    return [path for path in shards if split in words[path]]


def scan(system: AbstractFileSystem, shards: Sequence[str]) -> Iterator[Group]:
    """Yield the samples of all shards in order, and show the progress of a long scan."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = pool.map(lambda numbered: _scan(system, *numbered), enumerate(shards))
        for groups in tqdm(
            found, "index of the shards", len(shards), unit="shard", delay=5, mininterval=5
        ):
            yield from groups


def _scan(system: AbstractFileSystem, number: int, path: str) -> list[Group]:
    """Return the samples of a shard; for a damaged one, warn and return those before the damage."""
    groups: dict[str, list[Member]] = {}
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
                    place = Member(extension, number, member.offset_data, member.size)
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


def _drop_incomplete(groups: dict[str, list[Member]], last: str, length: int) -> None:
    """Drop the last sample of a truncated shard unless it has the same files as the first one."""
    members = [m for m in groups.pop(last, []) if m.offset + m.size <= length]
    first = next(iter(groups.values()), [])
    if members and {m.extension for m in members} == {m.extension for m in first}:
        groups[last] = members
