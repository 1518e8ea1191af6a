import contextlib
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from samclip_core.errors import Unavailable
from services.launch import serve
from services.retrieval import collection, database, embedded, graph
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.query import Query
from services.stop import Stopped
from tests.checkout import sources
from tests.ports import free_port
from tests.vectors import D, finished, items, vector

HOLDER = """
import sys, time
from pathlib import Path
from services.retrieval import folder
held = folder.take(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the collections of a folder, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def open_(folder: Path = tmp_path) -> EmbeddedCollections:
            return stack.enter_context(contextlib.closing(EmbeddedCollections(folder, "m" * 64, D)))

        yield open_


def rights(folder: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.iterdir())}


def hold_elsewhere(folder: Path, lock: str) -> subprocess.Popen[str]:
    """Start a process that holds a lock of the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder), lock]
    environment = {**os.environ, "PYTHONPATH": sources()}
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    return other


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def a_database(*tables: str) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as made:
        for table in tables:
            made.execute(f"CREATE TABLE {table}")
        return made.serialize()


@pytest.mark.parametrize(
    "content",
    [
        b"this is no database" * 100,
        a_database("model (digest, dimension, dtype)"),
        a_database("model (digest, dimension)", "graph (sha256, file, last)"),
    ],
    ids=["damaged", "without a graph", "without a precision"],
)
def test_a_damaged_collection_does_not_take_the_others_down(content, opened, tmp_path, caplog):
    """Neither does one of another version of this program."""
    collections = opened()
    collections.get_or_make("good", "float32").upsert(items(1))
    collections.close()
    (tmp_path / "bad.sqlite").write_bytes(content)
    again = opened()
    assert [d.name for d in again.describe()] == ["good"]
    assert "bad.sqlite" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR


def test_other_users_may_read_no_file_of_it(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "UNINDEXED", 1)
    folder = tmp_path / "index"
    found = opened(folder)
    found.get_or_make("pets", "float32").upsert(items(1, 2))
    assert not found.build()
    assert {path.suffix for path in folder.iterdir()} >= {".sqlite", ".sqlite-wal", ".usearch"}
    assert rights(folder) == {"0o600", "0o700"}
    found.close()
    for path in (folder, *folder.iterdir()):  # as a careless restore leaves them
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(opened(folder).get("pets")) == 2
    assert rights(folder) == {"0o600", "0o700"}


def test_opening_a_collection_does_not_list_the_folder(opened, monkeypatch):
    """Otherwise, describing n collections would take n² steps in the index's only thread."""
    found = opened()
    for name in "abc":
        found.get_or_make(name, "float32").upsert(items(1))
    found.close()
    again = opened()
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: [listed.append(path), scandir(path)][1])
    assert len(again.describe()) == 3
    assert len(again.get("a")) == 1
    assert listed == []


def test_a_second_process_waits_until_the_first_has_ended(opened, tmp_path, caplog):
    other = hold_elsewhere(tmp_path, "replica.lock")
    try:
        with pytest.raises(Unavailable) as refused:
            opened()
    finally:
        kill(other)
    assert str(tmp_path) not in str(refused.value)  # callers see this message
    assert f"{tmp_path} is in use by process {other.pid} on" in caplog.records[-1].getMessage()
    assert "SAMCLIP_INDEX_DIR" in caplog.records[-1].getMessage()
    opened().close()
    kill(hold_elsewhere(tmp_path, "replica.lock"))  # closing lets the next process in


def serve_with(index: Path, checkpoint: Path, *flags: str) -> int:
    ports = ["--http-port", str(free_port()), "--grpc-port", str(free_port())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMCLIP_INDEX_DIR", str(index))
        patch.setattr(serve.isolation, "environment", lambda *_: {})
        patch.setattr(serve, "_serve", lambda *_: Stopped("stopped by Ctrl-C"))
        return serve.main([*ports, "--checkpoint", str(checkpoint), *flags])


def test_a_second_service_is_refused_at_its_start(tmp_path, tiny_checkpoint, capsys):
    assert serve_with(tmp_path, tiny_checkpoint) == 0
    other = hold_elsewhere(tmp_path, "service.lock")
    try:
        assert serve_with(tmp_path, tiny_checkpoint) == 2
        error = capsys.readouterr().err
        assert f"index_dir {tmp_path} is in use by process {other.pid} on" in error
        assert "SAMCLIP_INDEX_DIR" in error
        # With Redis, the collections may not be in files, so the start does not lock them.
        assert serve_with(tmp_path, tiny_checkpoint, "--redis-url", "redis://127.0.0.1:1/0") == 0
    finally:
        kill(other)
    assert serve_with(tmp_path, tiny_checkpoint) == 0


def test_a_folder_that_cannot_be_closed_is_refused_at_the_start(tmp_path, tiny_checkpoint, capsys):
    tmp_path.chmod(0o1777)
    assert serve_with(tmp_path, tiny_checkpoint) == 2
    assert f"index_dir {tmp_path} cannot be used" in capsys.readouterr().err


def open_files(directory: Path) -> int:
    """Return the number of this process's open files in the directory."""
    found = 0
    for descriptor in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(descriptor.path).startswith(f"{directory}/pets-")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc/self/fd")
def test_collections_that_are_not_in_use_are_closed_and_opened_again(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "MOST_OPEN", 3, raising=False)
    collections = opened()
    for _ in range(2):
        for number in range(10):
            collections.get_or_make(f"pets-{number}", "float32").upsert(items(number, 10 + number))
            assert open_files(tmp_path) <= 3 * 3
    assert [d.count for d in collections.describe()] == [2] * 10
    assert open_files(tmp_path) <= 3 * 3
    collections.close()

    again = opened()
    assert len(again) == 10
    assert [(d.name, d.count, d.dimension, d.digest) for d in again.describe()] == [
        (f"pets-{number}", 2, D, "m" * 64) for number in range(10)
    ]
    assert open_files(tmp_path) == 0  # describing collections does not open them
    for number in range(10):
        found = finished(again.get(f"pets-{number}").search(Query(vector(number), 1)))
        assert [hit.id for hit in found] == [f"id {number}"]
    assert again.drop("pets-0") == 2
    assert len(again) == 9


def test_more_collections_than_the_process_may_open_files_are_all_answered(tmp_path):
    """The process raises its limit of open files as far as it may."""
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 64))
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.query import Query
from tests.vectors import D, finished, items, vector
collections = EmbeddedCollections(Path(sys.argv[1]), "m" * 64, D)
for number in range(24):
    collections.get_or_make(f"pets-{number}", "float32").upsert(items(number))
for number in range(24):
    hit, = finished(collections.get(f"pets-{number}").search(Query(vector(number), 1)))
    assert hit.id == f"id {number}"
"""
    environment = {**os.environ, "PYTHONPATH": sources()}
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=250)


def test_a_collection_is_made_whole_or_not_at_all(opened, monkeypatch):
    collections = opened()
    broken = database._SCHEMA + ";\nCREATE NONSENSE"
    with monkeypatch.context() as patch:
        patch.setattr(database, "_SCHEMA", broken)
        with pytest.raises(Unavailable):
            collections.get_or_make("pets", "float32")
    collections.close()
    again = opened()
    assert again.describe() == []  # its file has no model
    again.get_or_make("pets", "int8").upsert(items(1))
    assert again.describe("pets")[0].count == 1


@pytest.fixture
def pets(opened):
    return opened().get_or_make("pets", "float32")


def test_a_filtered_search_gives_way_after_each_part(pets, monkeypatch):
    monkeypatch.setattr(collection, "PART", 2)
    pets.upsert(items(*range(7)))
    steps = pets.search(Query(vector(1), 3, filter={"seed": "1"}))
    for _ in range(3):  # four parts
        assert next(steps) is None
    with pytest.raises(StopIteration) as done:
        next(steps)
    assert [hit.id for hit in done.value.value] == ["id 1"]
