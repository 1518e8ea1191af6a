"""The stamp in the metadata of a part's tables: the plan that they follow, and files' states."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from samclip_core.io.folder import Folder
from services.lake.tables import IMAGES, part_name

READERS = 32
"""Parts that are asked at once: stores answer slowly."""
_PART = re.compile(r"part-(\d+)\.parquet")


class Stamp(NamedTuple):
    """Metadata of both tables of a part; ``states`` of its files are of ``services.lake.states``.

    ``failures`` counts all images without an answer, ``unread`` those of them that could not be
    read: with any, the part is not done.
    """

    plan: str
    states: tuple[str, ...]
    images: int
    failures: int
    unread: int

    def metadata(self) -> dict[str, str]:
        """Return the stamp as metadata of a Parquet file."""
        values = [*self]
        values[1] = ",".join(self.states)
        return {f"samclip.{name}": f"{value}" for name, value in zip(_FIELDS, values, strict=True)}

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None) -> Self:
        """Return the stamp in the metadata of a file; that of another program has no plan."""
        found = metadata or {}
        plan, states, *counts = (found.get(f"samclip.{name}".encode(), b"") for name in _FIELDS)
        return cls(
            plan.decode(), tuple(states.decode().split(",")), *(int(each or 0) for each in counts)
        )


_FIELDS = Stamp._fields


def read(folder: Folder, number: int, table: str = IMAGES) -> Stamp | None:
    """Return the stamp of a part's table; None if the table is not there or damaged."""
    try:
        with folder.open(f"{table}/{part_name(number)}.parquet") as file:
            return Stamp.of(pq.ParquetFile(file).metadata.metadata)
    except (FileNotFoundError, pa.ArrowException):
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        return None  # as Arrow says that a footer is damaged


def numbers(folder: Folder) -> list[int]:
    """Return the numbers of the parts that have a table of images, in order."""
    folder.system.invalidate_cache()
    with suppress(FileNotFoundError):
        paths = folder.system.ls(f"{folder.path}/{IMAGES}", detail=False)
        found = (_PART.fullmatch(path.rpartition("/")[2]) for path in paths)
        return sorted(int(match[1]) for match in found if match)
    return []


def read_all(folder: Folder) -> Iterator[tuple[int, Stamp | None]]:
    """Yield each part that has a table of images, with its stamp."""
    there = numbers(folder)
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(there, pool.map(partial(read, folder), there), strict=True)
