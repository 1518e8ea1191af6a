"""The images of a tar as it is read, without extracting it and without trust in its headers.

tarfile reads extension headers of any size and follows the maps of sparse files: 2 MB may take
gigabytes, and before Python 3.11.10, 16 KB of digits take seconds. This walk takes the names from
extensions of a bounded size, and knows no sparse files.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from samclip.cli.places import open_file
from samclip.files import MAX_FILE_BYTES
from samclip.images import SUFFIXES

from services.sources.item import Item, Part

MOST_EXTENSION_BYTES = 2**20
MOST_EXTENSIONS = 16
"""Headers before that of a member; usual are one or two."""
MOST_NAME_BYTES = 4096
MOST_IMAGES = 1_000_000
"""Images in a shard, whose names are compared."""
ROOM_BYTES, RATIO = 256 * 2**20, 100
"""What gzip may unpack to: so many bytes, and this multiple of the packed ones."""
_BLOCK_BYTES, _SKIPPED_BYTES = 512, 2**20
_PAX, _GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK


class Damaged(ValueError):
    """A shard that cannot be read further."""


class _Member(NamedTuple):
    name: str
    size: int
    is_file: bool


def shard_images(part: Part) -> Iterator[Item]:
    """Yield the images of a shard. Raises Damaged where it cannot be read further, and OSError."""
    seen = set[int]()
    with open_file(part["path"]) as file:
        shard = _Shard(file)
        for member in shard.members():
            if member.name.lower().endswith(SUFFIXES):
                yield _image(part, shard, member, seen)


def _image(part: Part, shard: "_Shard", member: _Member, seen: set[int]) -> Item:
    id, source = f"{part['id']}/{member.name}", f"{part['path']}/{member.name}"
    if not member.is_file:
        problem = "a folder, link or sparse file, expected a file: replace it in the shard"
        return Item(id, source, problem=problem)
    name = hash(member.name)  # the names themselves may take a gigabyte
    if name in seen:
        problem = "the shard has two images of this name: the first was used, rename one"
        return Item(id, source, problem=problem)
    if len(seen) == MOST_IMAGES:
        raise Damaged(f"it has more than {MOST_IMAGES:,} images: split it")
    seen.add(name)
    if member.size > MAX_FILE_BYTES:
        return Item(id, source, problem=f"a file larger than {MAX_FILE_BYTES // 2**20} MiB")
    return Item(id, source, shard.content(member))


class _Shard:
    """A tar, packed with gzip or not, that is read from its begin to its end."""

    def __init__(self, file: io.BufferedReader) -> None:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        self._file: Any = io.BufferedReader(_Unpacked(file), _SKIPPED_BYTES) if packed else file
        self._left = 0
        """Bytes before the next header."""

    def members(self) -> Iterator[_Member]:
        """Yield the members. Raises Damaged where the tar cannot be read further, and OSError."""
        while (header := self._header()) is not None:
            name, pax = "", dict[bytes, bytes]()
            for _ in range(MOST_EXTENSIONS):
                if header.type in _PAX:
                    pax |= _records(self._extension(header))
                elif header.type == _LONG_NAME:
                    name = _decoded(self._extension(header).partition(b"\0")[0])
                elif header.type in (_GLOBAL, _LONG_LINK):
                    self._left = _padded(header.size)
                else:
                    break
                header = self._header()
                if header is None:
                    raise Damaged("it ends behind an extension header")
            else:
                raise Damaged(f"more than {MOST_EXTENSIONS} extension headers of one member")
            yield self._member(header, name, pax)

    def content(self, member: _Member) -> bytes:
        """Return the file of the member that was yielded last. Raises Damaged, OSError."""
        self._left -= member.size
        return self._exactly(member.size)

    def _member(self, header: tarfile.TarInfo, name: str, pax: dict[bytes, bytes]) -> _Member:
        size = header.size
        if b"size" in pax:
            size = _number(pax[b"size"])
        name = _decoded(pax[b"path"]) if b"path" in pax else name or header.name
        if len(name) > MOST_NAME_BYTES:
            raise Damaged(f"a name of {len(name):,} characters")
        has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        self._left = _padded(size) if has_content else 0
        sparse = header.type == tarfile.GNUTYPE_SPARSE
        sparse = sparse or any(key.startswith(b"GNU.sparse.") for key in pax)
        return _Member(name, size, header.isreg() and not sparse)

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next header; None at the mark of the end."""
        while self._left:
            self._left -= len(self._exactly(min(self._left, _SKIPPED_BYTES)))
        block = self._exactly(_BLOCK_BYTES)
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Damaged(str(error)) from None
        if header.size < 0:
            raise Damaged("a negative size")
        if header.type == tarfile.GNUTYPE_SPARSE:
            more = block[482]  # the map goes on in blocks of its own
            while more:
                more = self._exactly(_BLOCK_BYTES)[504]
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if header.size > MOST_EXTENSION_BYTES:
            raise Damaged(f"an extension header of {header.size:,} bytes")
        return self._exactly(_padded(header.size))[: header.size]

    def _exactly(self, size: int) -> bytes:
        try:
            found: bytes = self._file.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Damaged(str(error)) from None
        if len(found) < size:
            raise Damaged("it is cut off")
        return found


class _Unpacked(io.RawIOBase):
    """What a file unpacks to with gzip. Raises Damaged if that is far more than the file has."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._packed, self._file = file, gzip.GzipFile(fileobj=file)
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read1(len(buffer))  # what lies before damage, too
        buffer[: len(found)] = found
        self._total += len(found)
        if self._total > ROOM_BYTES + RATIO * self._packed.tell():
            raise Damaged(f"it unpacks to more than {RATIO} times its bytes")
        return len(found)


def _padded(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _records(extension: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header: each begins with its length in bytes."""
    found, at = dict[bytes, bytes](), 0
    while at < len(extension) and extension[at]:
        digits, _, _ = extension[at : at + 8].partition(b" ")
        length = _number(digits)
        record = extension[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) < length:
            raise Damaged("a record of a pax header is damaged")
        found[key] = value
        at += length
    return found


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise Damaged("a number of a pax header is damaged")
    return int(digits)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape").rstrip("/")
