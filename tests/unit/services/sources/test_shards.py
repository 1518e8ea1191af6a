"""Shards that somebody made to take all memory, or for ever."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.sources import shards
from services.sources.item import Columns, Item
from services.sources.listing import items, parts
from tests.memory import growth_mb

END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size < 0 or size >= 8**11:
        block[124:136] = b"\xff" * 4 + struct.pack(">q", size)
        if size >= 0:
            block[124:136] = b"\x80" + bytes(3) + struct.pack(">q", size)
    else:
        block[124:136] = b"%011o\0" % size
    return sealed(block)


def sealed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def file(name: str, content: bytes) -> bytes:
    return header(name, len(content)) + padded(content)


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("./PaxHeaders/x", len(content), kind) + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def read(path: Path) -> list[Item]:
    (part,) = parts([str(path)], Columns(), 10)
    return [*items(json.loads(json.dumps(part)))]


FIRST = file("first.jpg", b"first")


def images_and_problem(path: Path, content: bytes) -> tuple[list[str], str]:
    path.write_bytes(content)
    *good, bad = read(path)
    assert not bad.again
    assert all(item.encoded == b"first" for item in good)
    return [item.id for item in good], bad.problem


DAMAGED: dict[str, tuple[bytes, str]] = {
    "a map of a sparse file": (
        pax(record(b"GNU.sparse.map", b"x")) + file("x.jpg", b"x") + END,
        "sparse file",
    ),
    "a sparse file of gigabytes": (
        pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
            + record(b"GNU.sparse.realsize", b"4000000000"))
        + file("x.jpg", b"1\n4000000000\n1\n") + END,
        "sparse file",
    ),
    "an old sparse file": (header("x.jpg", 5, tarfile.GNUTYPE_SPARSE) + padded(b"first") + END,
                           "sparse file"),
    "a negative size": (header("x.jpg", -512) + END, "negative size"),
    "a size beyond all": (header("x.json", 2**62) + END, "cut off"),
    "a large extension": (pax(record(b"a", bytes(2**20))), "an extension header of 1,0"),
    "a large long name": (
        header("x", 2**30, tarfile.GNUTYPE_LONGNAME) + END, "an extension header of 1,073,741,824"
    ),
    "only digits": (pax(b"1" * 300_000) + file("x.jpg", b"x"), "pax header is damaged"),
    "a record of no length": (pax(b"0 a=b\n") + file("x.jpg", b"x"), "pax header is damaged"),
    "a record beyond the header": (pax(b"99 a=b\n") + file("x.jpg", b"x"), "pax header is damaged"),
    "extensions without a member": (100 * pax(record(b"a", b"b")), "16 extension headers"),
    "a name without end": (pax(record(b"path", b"n" * 5000 + b".jpg")) + file("x.jpg", b"x"),
                           "a name of 5,004"),
    "no member behind an extension": (pax(record(b"a", b"b")) + END, "behind an extension header"),
    "no header": (b"x" * 512, "invalid header"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_the_images_before_damage_are_kept_and_the_rest_is_one_problem(
    tmp_path: Path, name: str
) -> None:
    content, problem = DAMAGED[name]
    good, reason = images_and_problem(tmp_path / "s.tar", FIRST + content)
    assert good == ["s.tar/first.jpg"]
    assert problem in reason


def test_an_image_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    content = FIRST + header("x.jpg", 2**27) + bytes(2**27) + file("y.jpg", b"y") + END
    (tmp_path / "s.tar").write_bytes(content)
    _, large, last = read(tmp_path / "s.tar")
    assert large.problem == "a file larger than 64 MiB"
    assert last.read() == b"y"


def test_names_of_extensions_are_read(tmp_path: Path) -> None:
    """As tar writes them: pax with other records, a global header, GNU's long names and links."""
    long = "d/" * 200 + "é.jpg"
    names = record(b"mtime", b"1.5") + record(b"path", long.encode())
    content = pax(record(b"comment", b"x" * 5000), tarfile.XGLTYPE) + pax(names)
    content += file("short.jpg", b"first")
    content += header("././@LongLink", len(long), tarfile.GNUTYPE_LONGLINK) + padded(long.encode())
    gnu = f"{long}.png".encode() + b"\0"
    content += header("././@LongLink", len(gnu), tarfile.GNUTYPE_LONGNAME) + padded(gnu)
    content += file("short.jpg", b"second")
    size = record(b"size", b"5")
    content += pax(size) + header("size.jpg", 0) + padded(b"third") + header("folder.jpg/") + END
    (tmp_path / "s.tar").write_bytes(content)
    found = read(tmp_path / "s.tar")
    ids = [f"s.tar/{name}" for name in (long, f"{long}.png", "size.jpg")]
    assert [item.id for item in found[:3]] == ids
    assert [item.read() for item in found[:3]] == [b"first", b"second", b"third"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_tarfile_writes_is_read(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "n" * 90 + "/" + "é" * 20 + ".png", "a.json", "b.webp"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as shard:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 700
            shard.addfile(member, io.BytesIO(700 * b"x"))
    images = [name for name in names if not name.endswith("json")]
    found = read(tmp_path / "s.tar")
    assert [item.id for item in found] == [f"s.tar/{name}" for name in images]
    assert {item.read() for item in found} == {700 * b"x"}


def test_a_shard_of_several_members_of_gzip_is_read_to_its_end(tmp_path: Path) -> None:
    packed = gzip.compress(FIRST[:300]) + gzip.compress(FIRST[300:] + END) + bytes(100)
    (tmp_path / "s.tar.gz").write_bytes(packed)
    assert [item.read() for item in read(tmp_path / "s.tar.gz")] == [b"first"]


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip"])
def test_a_damaged_shard_of_gzip_keeps_the_images_before(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(FIRST) + gzip.compress(file("x.jpg", bytes(range(256)) * 9) + END)
    start = len(gzip.compress(FIRST))
    changed = {
        "cut": packed[: start + 60],
        "changed": packed[: start + 30] + bytes(20) + packed[start + 50 :],
        "no gzip": packed[:start] + b"other content" + bytes(500),
    }
    good, _ = images_and_problem(tmp_path / "s.tgz", changed[damage])
    assert good == ["s.tgz/first.jpg"]


def test_gzip_unpacks_to_a_multiple_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROOM_BYTES", 2**22)
    bomb = gzip.compress(FIRST + header("x.json", 2**30) + bytes(2**24))
    good, reason = images_and_problem(tmp_path / "s.tar.gz", bomb)
    assert good == ["s.tar.gz/first.jpg"]
    assert "more than 100 times its bytes" in reason


def test_a_shard_has_so_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_IMAGES", 1)
    content = FIRST + file("x.jpg", b"x") + END
    assert "more than 1 images" in images_and_problem(tmp_path / "s.tar", content)[1]


def large_extension() -> bytes:
    return pax(record(b"a", bytes(2**27)))


def long_name() -> bytes:
    return header("x", 2**27, tarfile.GNUTYPE_LONGNAME) + bytes(2**27)


def many_members() -> bytes:
    return 100_000 * header("x.json")


ATTACKS: Sequence[Callable[[], bytes]] = (large_extension, long_name, many_members)


def test_no_shard_takes_much_memory(tmp_path: Path) -> None:
    for attack in ATTACKS:
        with gzip.open(tmp_path / f"{attack.__name__}.tar.gz", "wb", 1) as packed:
            packed.write(FIRST + attack())
    code = "for item in items({'kind': 'shard', 'path': sys.argv[1] + '/' + name, 'id': 's'}): pass"
    names = [f"{attack.__name__}.tar.gz" for attack in ATTACKS]
    code = f"for name in {names!r}:\n  {code}"
    reader = "from services.sources.listing import items"
    assert growth_mb(reader, code, tmp_path) < 20  # 45 and more each with tarfile
