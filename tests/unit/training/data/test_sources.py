import io
import json
import logging
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.photographs import Drawing, annotated, draw, instance, jpg, outlined, write_shard
from training.data import sources
from training.data.annotations import decoded, regions
from training.data.sample import BadSample, Sample
from training.data.sources import Source, open_source

PHOTO = jpg(np.full((8, 12, 3), 128, np.uint8))


def samples(source: Source) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sa_1b(drawing: Drawing) -> bytes:
    annotations = [instance(mask, predicted_iou=0.9) for mask in drawing.masks]
    return json.dumps({"image": {"image_id": 1}, "annotations": annotations}).encode()


def test_any_sample_of_the_shards_is_read_by_its_index(tmp_path: Path):
    instances = {"jpg": PHOTO, "inst.png": b"ids", "png": b"labels", "json": b"{}", "cls": b"7"}
    write_shard(tmp_path / "set/train-00001.tar", {"c": annotated(draw(0)), "a": instances})
    write_shard(tmp_path / "set/train-00000.tar", {"d": outlined(draw(1), name="one")})
    write_shard(tmp_path / "set/val-00000.tar", {"v": annotated(draw(2))})

    source = open_source(str(tmp_path / "set"))
    assert source.name == "set"
    assert [source[i].key for i in (2, 0, 1)] == ["a", "d", "c"]
    assert source[2] == Sample(
        key="a", source="set", encoded=PHOTO, info={}, label_png=b"labels", instance_png=b"ids",
        class_index=7,
    )  # fmt: skip
    assert source[0].info == {"name": "one"}
    assert source[0].class_index == -1
    assert source[1].encoded == annotated(draw(0))["jpg"]
    with pytest.raises(IndexError, match="set has 3 samples, got index 3"):
        source[3]
    with pytest.raises(IndexError):
        source[-1]


def test_a_bucket_reads_like_a_folder(tmp_path: Path):
    for i in range(2):
        shard = {f"{i}{j}": outlined(draw(j), place=f"{i}{j}") for j in range(3)}
        write_shard(tmp_path / f"set/train-0000{i}.tar", shard)
    memory = fsspec.filesystem("memory")
    for path in sorted((tmp_path / "set").iterdir()):
        memory.pipe(f"/bucket/shards/set/{path.name}", path.read_bytes())
    memory.pipe("/bucket/plain/train/cat/1.JPEG", PHOTO)

    assert samples(open_source("memory://bucket/shards/set")) == samples(
        open_source(str(tmp_path / "set"))
    )
    (cat,) = samples(open_source("memory://bucket/plain"))
    assert (cat.key, cat.encoded, cat.class_index) == ("cat/1", PHOTO, 0)
    with pytest.raises(FileNotFoundError, match="memory://bucket/absent"):
        open_source("memory://bucket/absent")


@pytest.mark.parametrize("failures", [2, 9])
def test_a_read_that_fails_is_tried_again_and_is_no_broken_photograph(
    failures: int, monkeypatch: pytest.MonkeyPatch
):
    """Before 2026, fsspec's network file systems returned errors that they were told to raise."""
    left, pauses = [ConnectionError("reset by peer")] * failures, []
    read = MemoryFileSystem.cat_ranges

    def unsteady(system: MemoryFileSystem, paths: list[str], *ranges: object, **_: object):
        whole = read(system, paths, *ranges, on_error="return")
        return [*whole[:-1], left.pop()] if left else whole

    fsspec.filesystem("memory").pipe("/unsteady/set/a.jpg", PHOTO)
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", unsteady)
    monkeypatch.setattr(sources.time, "sleep", pauses.append)
    source = open_source("memory://unsteady/set")
    if failures == 2:
        assert source[0].encoded == PHOTO
    else:
        with pytest.raises(OSError, match=r"memory://.unsteady/set/a.jpg could.*reset by peer"):
            source[0]
    assert pauses == [*sources.PAUSES][:failures]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shard: os.truncate(shard, 100), "the file has changed since it was indexed"),
        (Path.unlink, "is gone since its set was indexed: put it back"),
    ],
)
def test_a_shard_that_is_cut_or_gone_is_an_error_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
):
    write_shard(tmp_path / "set/train-0.tar", {"a": outlined(draw(0))})
    source = open_source(str(tmp_path / "set"))
    change(tmp_path / "set/train-0.tar")
    monkeypatch.setattr(sources, "PAUSES", ())
    with pytest.raises(OSError, match=message):
        source[0]


def test_captions_come_from_a_text_or_from_the_json(tmp_path: Path):
    texts = {
        "000000000": {"jpg": PHOTO, "txt": b" a dog\n", "json": b'{"caption": "A dog"}'},
        "000000001": {"JPG": PHOTO, "json": b'{"caption": "a cat", "width": 12}'},
        "000000002": {"webp": b"webp", "npy": b"unknown"},
        "000000003": {"npy": b"no photograph"},
        "000000004": {"png": b"a png alone is the photograph", "json": b'{"captions": ["x", "y"]}'},
    }
    write_shard(tmp_path / "cc3m-train-0000.tar", texts)
    write_shard(tmp_path / "cc3m-validation-0000.tar", {"v": {"jpg": PHOTO}})
    dog, cat, plain, both = samples(open_source(str(tmp_path)))
    assert dog.info["captions"] == ["a dog"]
    assert cat.info == {"caption": "a cat", "captions": ["a cat"], "width": 12}
    assert (plain.encoded, plain.info) == (b"webp", {})
    assert both.encoded.startswith(b"a png")
    assert (both.label_png, both.info["captions"]) == (b"", ["x", "y"])


@pytest.mark.parametrize("layout", ["shard", "folder"])
def test_sa_1b_brings_its_masks(tmp_path: Path, layout: str):
    first, second = draw(1), draw(2)
    empty = json.dumps({"annotations": []}).encode()
    files = {
        "sa_1.jpg": jpg(first.image_HW3),
        "sa_2.jpg": jpg(second.image_HW3),
        "sa_3.jpg": PHOTO,
        "sa_2.json": sa_1b(second),  # a key's files need not be adjacent
        "sa_1.json": sa_1b(first),
        "sa_3.json": empty,
    }
    if layout == "shard":
        with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        write_files(tmp_path / "sa_000000", files)
    found = samples(open_source(str(tmp_path)))
    assert [s.key.rpartition("/")[2] for s in found] == ["sa_1", "sa_2", "sa_3"]
    assert {s.class_index for s in found} == {-1}  # the folder is a part, not a class
    for sample, drawing in zip(found, (first, second), strict=False):
        assert np.array_equal(decoded(regions(sample)), drawing.masks)
    assert regions(found[2]) == []


def test_folders_of_classes_are_numbered_in_the_order_of_their_names(tmp_path: Path):
    files = {
        f"train/{name}": name.encode()
        for name in ("n02/b.JPEG", "n02/a.JPEG", "n01/c.d.jpeg", "n10/x.png")
    }
    write_files(tmp_path, files | {"val/n01/v.JPEG": b"v", "train/n01/notes.pdf": b"no photograph"})
    found = samples(open_source(str(tmp_path)))
    assert [(s.key, s.class_index) for s in found] == [
        ("n01/c.d", 0), ("n02/a", 1), ("n02/b", 1), ("n10/x", 2),
    ]  # fmt: skip
    assert [s.encoded for s in found] == [
        b"train/n01/c.d.jpeg"[6:],
        b"n02/a.JPEG",
        b"n02/b.JPEG",
        b"n10/x.png",
    ]
    assert [s.key for s in samples(open_source(str(tmp_path), "val"))] == ["n01/v"]


def test_a_split_is_never_mistaken_for_another(tmp_path: Path):
    write_shard(tmp_path / "shards/val-00000.tar", {"v": {"jpg": PHOTO}})
    write_files(tmp_path / "folders", {"val/a.jpg": PHOTO, "test/b.jpg": PHOTO})
    write_files(tmp_path / "mixed", {"a.jpg": PHOTO, "val/b.jpg": PHOTO})
    write_shard(tmp_path / "inside/train/00000.tar", {"t": {"jpg": PHOTO}})
    for name in ("shards", "folders"):
        with pytest.raises(FileNotFoundError, match=rf"train-\*\.tar in .*{name}"):
            open_source(str(tmp_path / name))
    assert [s.key for s in samples(open_source(str(tmp_path / "mixed")))] == ["a"]
    assert [s.key for s in samples(open_source(str(tmp_path / "inside")))] == ["t"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_an_empty_set_says_what_was_looked_for(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.md").write_text("nothing yet")
    with pytest.raises(FileNotFoundError, match=rf"no shards train-\*\.tar in .*{name}, nor any"):
        open_source(str(tmp_path / name))


def test_of_a_shard_cut_anywhere_the_whole_samples_before_the_cut_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = {f"{i}": {"jpg": PHOTO + bytes(i), "json": b'{"n": %d}' % i} for i in range(4)}
    write_shard(tmp_path / "whole/train-0.tar", whole)
    write_shard(tmp_path / "cut/train-1.tar", {"next": {"jpg": PHOTO}})
    expected = samples(open_source(str(tmp_path / "whole")))
    assert caplog.records == []
    content = (tmp_path / "whole/train-0.tar").read_bytes()
    sample_bytes = (content.rindex(b'{"n": 3}') + 512) // 4
    for length in range(0, 4 * sample_bytes + 1, 250):
        caplog.clear()
        (tmp_path / "cut/train-0.tar").write_bytes(content[:length])
        *kept, last = samples(open_source(str(tmp_path / "cut")))
        assert last.key == "next"
        assert [(s.key, s.encoded, s.info) for s in kept] == [
            (s.key, s.encoded, s.info) for s in expected[: len(kept)]
        ]
        assert length // sample_bytes - 1 <= len(kept) <= length // sample_bytes + 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"cut/train-0.tar is damaged or truncated: only its first {len(kept)} samples" in (
            record.getMessage()
        )


def test_a_shard_damaged_in_its_middle_keeps_what_stands_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_shard(tmp_path / "train-0.tar", {f"{i}": {"jpg": PHOTO} for i in range(4)})
    content = (tmp_path / "train-0.tar").read_bytes()
    header = content.index(b"2.jpg")
    (tmp_path / "train-0.tar").write_bytes(
        content[:header] + b"\xff" * 512 + content[header + 512 :]
    )
    assert [s.key for s in samples(open_source(str(tmp_path)))] == ["0", "1"]
    assert "only its first 2 samples are used" in caplog.text


@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\x00", b"\x80" + b"\x7f" * 11])
def test_a_shard_with_a_size_that_no_writer_means_keeps_what_stands_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: bytes
):
    """A negative one was read over and over."""
    write_shard(tmp_path / "train-0.tar", {f"{i}": {"jpg": PHOTO} for i in range(4)})
    content = bytearray((tmp_path / "train-0.tar").read_bytes())
    header = content.index(b"2.jpg")
    content[header + 124 : header + 136] = size
    checked = content[header : header + 148] + b" " * 8 + content[header + 156 : header + 512]
    content[header + 148 : header + 156] = b"%06o\0 " % sum(checked)
    (tmp_path / "train-0.tar").write_bytes(content)
    assert [s.key for s in samples(open_source(str(tmp_path)))] == ["0", "1"]
    assert "only its first 2 samples are used" in caplog.text


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"json": b'{"a": '}, "Expecting value"),
        ({"json": b"[1]"}, "the json is not an object"),
        ({"json": b"\xff\xfe\xff"}, "its json, caption or class cannot be read"),
        ({"txt": b"\xff"}, "decode"),
        ({"cls": b"dog"}, "dog"),
    ],
)
def test_a_broken_sample_is_blamed_and_its_neighbours_stay(
    tmp_path: Path, files: dict[str, bytes], reason: str
):
    write_shard(
        tmp_path / "set/0.tar",
        {"good": {"jpg": PHOTO, "json": b"{}"}, "bad": {"jpg": PHOTO} | files},
    )
    source = open_source(str(tmp_path / "set"))
    with pytest.raises(BadSample, match=reason) as raised:
        source[1]
    assert (raised.value.source, raised.value.key) == ("set", "bad")
    assert str(raised.value).startswith("set/bad: its json, caption or class cannot be read: ")
    assert source[0].key == "good"
    copy = pickle.loads(pickle.dumps(raised.value))  # worker processes pickle it
    assert (copy.source, copy.key, copy.reason, str(copy)) == (
        "set", "bad", raised.value.reason, str(raised.value),
    )  # fmt: skip
