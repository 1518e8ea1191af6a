"""The index of shards on disk: shared, checked against the shards, replaced when it is damaged."""

import errno
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


def indexes(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir())


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
    folder: Path, scanned: list[str], change: Callable[[Path], object], scans: int, new: bool
):
    open_source(str(folder))
    scanned.clear()
    change(folder)
    source = open_source(str(folder))
    assert (len(scanned), "new" in dict(content(source))) == (scans, new)
    (name,) = indexes(folder / ".samclip-index")  # the older index was removed
    assert name.startswith("train-")


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
    folder: Path, scanned: list[str], damage: Callable[[Path], object], caplog
):
    expected = content(open_source(str(folder)))
    (name,) = indexes(folder / ".samclip-index")
    damage(folder / ".samclip-index" / name / "offset_M.npy")
    scanned.clear()
    assert content(open_source(str(folder))) == expected
    assert len(scanned) == 2
    assert f"{name} is damaged" in caplog.text
    scanned.clear()
    assert content(open_source(str(folder))) == expected
    assert not scanned


def test_read_only_folders_and_urls_use_the_cache_folder(
    folder: Path, scanned: list[str], tmp_path: Path
):
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe(f"/indexed/{path.name}", path.read_bytes())
    folder.chmod(0o555)
    for location in (str(folder), "memory://indexed"):
        scanned.clear()
        first, again = open_source(location), open_source(location)
        assert len(scanned) == 2
        assert content(first) == content(again)
    assert not (folder / ".samclip-index").exists()
    assert len(list((tmp_path / "home/.cache/samclip/index").iterdir())) == 2


def test_a_command_indexes_sets_for_all_nodes_that_share_the_cache(
    folder: Path, scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    folder.chmod(0o555)
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


def test_a_file_system_without_locks_or_space_leaves_the_index_to_the_next_place(
    folder: Path, scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lock, save = index.fcntl.flock, np.save

    def flock(file: IO[str], operation: int) -> None:
        if ".samclip-index" in file.name:
            raise OSError(errno.ENOSYS, "Function not implemented")
        lock(file, operation)

    def full(path: Path, values: np.ndarray) -> None:
        if ".samclip-index" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, values)

    for function, failing in (("fcntl.flock", flock), ("np.save", full)):
        with monkeypatch.context() as patch:
            patch.setattr(f"training.data.index.{function}", failing)
            scanned.clear()
            expected = content(open_source(str(folder)))
            assert content(open_source(str(folder))) == expected
        assert len(scanned) == 2
        assert not indexes(folder / ".samclip-index")
        shutil.rmtree(tmp_path / "home")


@pytest.mark.parametrize("cause", ["read-only", "full"])
def test_without_a_place_the_index_stays_in_memory(
    folder: Path, tmp_path: Path, cause: str, monkeypatch: pytest.MonkeyPatch, caplog
):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    if cause == "full":
        monkeypatch.setattr(index.np, "save", full)
    else:
        folder.chmod(0o555)
        (tmp_path / "home").mkdir(mode=0o555)
    source = open_source(str(folder))
    assert len(content(source)) == 6
    assert "could not be stored" in caplog.text or cause == "read-only"
    assert f"cannot be stored in any of {folder}" in caplog.text
    assert str(tmp_path / "home") in caplog.text
    assert cause == "read-only" or not indexes(folder / ".samclip-index")
    assert content(pickle.loads(pickle.dumps(source))) == content(source)


def test_a_reader_has_the_photographs_of_its_sampler_or_none(folder: Path):
    pickled = pickle.dumps(open_source(str(folder)))
    assert len(pickled) < 500 + 5 * len(str(folder))  # paths alone
    assert len(pickle.loads(pickled)) == 6
    write_shard(folder / "train-2.tar", NEW)
    assert len(open_source(str(folder))) == 7
    with pytest.raises(FileNotFoundError, match="have changed since this run began"):
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
