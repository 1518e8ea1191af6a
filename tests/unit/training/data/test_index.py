"""The index of shards on disk: shared, checked against the shards, replaced when it is damaged."""

import hashlib
import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
import pytest

from tests.photographs import write_shard
from training.data import index, sources
from training.data.__main__ import main as index_sets
from training.data.index import Index, Member
from training.data.sources import Source, open_source


@pytest.fixture(autouse=True)
def scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the shards that were scanned; indexes are read from disk, not from memory."""
    paths, scan = [], sources._scan
    monkeypatch.setattr(
        sources, "_scan", lambda *parts: paths.append(Path(parts[2]).name) or scan(*parts)
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(index, "_verified", index._verified.__wrapped__)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        keys = (f"{number}{letter}" for letter in "abc")
        write_shard(
            tmp_path / f"set/train-{number}.tar",
            {key: {"jpg": key.encode(), "json": b'{"n": 1}'} for key in keys},
        )
    return tmp_path / "set"


def content(source: Source) -> list[tuple[str, bytes]]:
    return [(sample.key, sample.encoded) for sample in (source[i] for i in range(len(source)))]


def indexes(tmp_path: Path) -> list[Path]:
    """Return the indexes in the cache of the user."""
    return [*tmp_path.glob("home/.cache/samclip/index/*/train-*")]


def test_shards_are_scanned_once(folder: Path, scanned: list[str]):
    first = open_source(str(folder))
    again = open_source(str(folder))
    assert sorted(scanned) == ["train-0.tar", "train-1.tar"]
    assert content(again) == content(first)
    assert [key for key, _ in content(again)] == ["0a", "0b", "0c", "1a", "1b", "1c"]
    assert again.digest() == first.digest()
    assert isinstance(again.index.offset_M, np.memmap)


NEW = {"new": {"jpg": b"new"}}


@pytest.mark.parametrize(
    ("change", "scans", "new"),
    [
        (lambda folder: write_shard(folder / "train-1.tar", NEW), 2, True),
        (lambda folder: os.utime(folder / "train-1.tar", (1, 1)), 2, False),
        (lambda folder: (folder / "train-1.tar").rename(folder / "train-2.tar"), 2, False),
        (lambda folder: write_shard(folder / "train-2.tar", NEW), 3, True),
    ],
    ids=["size", "time", "name", "more"],
)
def test_changed_shards_are_scanned_again(
    folder: Path,
    scanned: list[str],
    tmp_path: Path,
    change: Callable[[Path], object],
    scans: int,
    new: bool,
):
    open_source(str(folder))
    scanned.clear()
    change(folder)
    source = open_source(str(folder))
    assert (len(scanned), "new" in dict(content(source))) == (scans, new)
    assert len(indexes(tmp_path)) == 2  # the older one may be that of another machine's copy


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda array: array.write_bytes(array.read_bytes()[:-1] + b"\1"),
        lambda array: array.write_bytes(array.read_bytes()[:-9]),
        lambda array: array.unlink(),
        lambda array: array.with_name("index.json").write_text('{"checksums"'),
        lambda array: pipe(array),
        lambda array: pipe(array.with_name("index.json")),
    ],
    ids=["byte", "short", "absent", "json", "pipe", "pipe of JSON"],
)
def test_a_damaged_index_is_replaced(
    folder: Path, scanned: list[str], tmp_path: Path, damage: Callable[[Path], object], caplog
):
    expected = content(open_source(str(folder)))
    (stored,) = indexes(tmp_path)
    damage(stored / "offset_M.npy")
    scanned.clear()
    assert content(open_source(str(folder))) == expected
    assert len(scanned) == 2
    assert f"{stored} is damaged" in caplog.text
    scanned.clear()
    assert content(open_source(str(folder))) == expected
    assert not scanned


def test_folders_and_urls_use_the_cache_folder(folder: Path, scanned: list[str], tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe(f"/indexed/{path.name}", path.read_bytes())
    for location in (str(folder), "memory://indexed"):
        scanned.clear()
        first, again = open_source(location), open_source(location)
        assert len(scanned) == 2
        assert content(first) == content(again)
    assert sorted(path.name for path in folder.iterdir()) == ["train-0.tar", "train-1.tar"]
    assert len(indexes(tmp_path)) == 2


def test_a_command_indexes_sets_for_all_nodes_that_share_the_cache(
    folder: Path, scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert index_sets([str(folder)]) == 0
    assert f"{folder}: 6 photographs" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(tmp_path / "another-node"))
    scanned.clear()
    assert len(open_source(str(folder))) == 6
    assert not scanned


@pytest.mark.parametrize(
    ("location", "message"),
    [("/nowhere", "no shards train-*.tar in /nowhere"), ("nowhere://set", "Protocol not known")],
)
def test_the_command_ends_with_a_plain_error_if_there_is_no_such_set(
    location: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        index_sets([location])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"python -m training.data: {location}: {message}")


@pytest.mark.parametrize("cause", ["no folder", "no locks", "full"])
def test_without_a_place_the_index_stays_in_memory(
    folder: Path, tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch, caplog
):
    def fail(*_: object) -> None:
        raise OSError("it cannot be done")

    if cause == "no folder":
        (tmp_path / "home").write_text("a file")
    else:
        broken = {"no locks": (index.fcntl, "flock"), "full": (index.np, "save")}[cause]
        monkeypatch.setattr(*broken, fail)
    source = open_source(str(folder))
    assert len(content(source)) == 6
    assert "stored in" in caplog.text
    assert str(tmp_path / "home") in caplog.text
    assert not indexes(tmp_path)
    assert content(pickle.loads(pickle.dumps(source))) == content(source)


def test_a_reader_has_the_photographs_of_its_sampler_or_none(folder: Path, tmp_path: Path):
    pickled = pickle.dumps(open_source(str(folder)))
    assert len(pickled) < 500 + 5 * len(str(folder))  # paths alone
    assert len(pickle.loads(pickled)) == 6
    write_shard(folder / "train-2.tar", NEW)
    assert len(open_source(str(folder))) == 7
    assert len(pickle.loads(pickled)) == 6
    for stored in indexes(tmp_path):
        shutil.rmtree(stored)
    with pytest.raises(FileNotFoundError, match=r"is gone.*Start the run again"):
        pickle.loads(pickled)


def test_of_several_readers_one_scans(
    folder: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The others wait for its lock, which excludes threads as it does processes."""
    asked, lock, scan = list[IO[str]](), index.fcntl.flock, sources._scan

    def flock(file: IO[str], operation: int) -> None:
        asked.append(file)
        lock(file, operation)

    def scan_late(*parts: object) -> object:
        while len(asked) < 3:
            time.sleep(0.01)
        return scan(*parts)

    monkeypatch.setattr(index.fcntl, "flock", flock)
    monkeypatch.setattr(sources, "_scan", scan_late)
    with ThreadPoolExecutor(3) as readers:
        assert [*map(len, readers.map(open_source, [str(folder)] * 3))] == [6] * 3
    assert sorted(scanned) == ["train-0.tar", "train-1.tar"]


def test_the_digest_covers_sizes_and_keys():
    made = Index.of([("ä", [Member("jpg", 0, 7, 2), Member("json", 0, 9, 1)]), ("b", [])])
    expected = hashlib.sha256(np.array([2, 1], np.uint32).tobytes() + "ä\n".encode())
    assert made.digest() == expected.hexdigest()


def test_names_that_are_not_text_are_kept(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    name = os.fsdecode(b"caf\xe9")
    write_shard(folder / "train-1.tar", {name: {"jpg": b"x"}})
    assert name in dict(content(open_source(str(folder))))
    assert not caplog.records
