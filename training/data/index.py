"""The index of a set: which files belong to which sample, and where they are in the shards.

Kept on disk by ``training.data.stored``.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PHOTOGRAPHS = ("jpg", "jpeg", "webp", "png")  # a png next to one of the others is a label map


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
    folders of the keys, ``changed`` the times of the last change of plain folders by their paths.
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
    changed: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Iterable[Group], changed: Mapping[str, int] | None = None) -> "Index":
        """Return the index of those samples that have a photograph.

        ``changed`` may be filled while ``groups`` is read.
        """
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
            changed=changed or {},
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
