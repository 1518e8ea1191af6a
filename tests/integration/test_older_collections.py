"""Collections that an older version kept as SQLite files are taken over at the first start."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from samclip_core.io.files import locked
from services.retrieval.engine import open_index
from services.retrieval.index import Collections
from services.retrieval.older import take_over
from services.retrieval.registry import Registry
from services.retrieval.rows import Item, to_bytes
from services.settings import Settings
from tests.vectors import MODEL, D, items, with_objects

_SCHEMA = """
CREATE TABLE model (digest TEXT NOT NULL, dimension INTEGER NOT NULL, dtype TEXT NOT NULL);
CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    metadata TEXT NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE objects (number INTEGER PRIMARY KEY, count INTEGER NOT NULL, packed BLOB NOT NULL);
"""


CHANGES = {
    "no-model": "DELETE FROM model",
    "text-dimension": "UPDATE model SET dimension = 'many'",
    "metadata-list": "UPDATE items SET metadata = '[1]'",
    "metadata-null": "UPDATE items SET metadata = 'null'",
    "text-vector": "UPDATE items SET vector = 'text'",
    "short-vector": "UPDATE items SET vector = x'00' WHERE number = 301",
    "zero-vector": f"UPDATE items SET vector = x'{bytes(4 * D).hex()}'",
    "nan-vector": f"UPDATE items SET vector = x'{np.full(D, np.nan, '<f4').tobytes().hex()}'",
    "deep-metadata": f"UPDATE items SET metadata = '{'[' * 100_000}'",
    "numbers-in-metadata": """UPDATE items SET metadata = '{"a": 1}'""",
    "long-id": f"UPDATE items SET id = '{'x' * 257}' WHERE number = 301",
    "no-objects": "INSERT INTO objects VALUES (301, 1, x'00')",
    "no-dimension": "UPDATE model SET dimension = 0",
    "huge-dimension": f"UPDATE model SET dimension = {2**40}",
}
"""What SQLite stores as well, by the names of the files."""


def write(file: Path, dtype: str, *made: Item) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(_SCHEMA)
        database.execute("INSERT INTO model VALUES (?, ?, ?)", (MODEL, D, dtype))
        for number, item in enumerate(made, start=1):
            row = number, item.id, json.dumps(dict(item.metadata)), to_bytes(item.vector_D)
            database.execute("INSERT INTO items VALUES (?, ?, ?, ?)", row)
            if item.objects:
                row = number, 3, item.objects
                database.execute("INSERT INTO objects VALUES (?, ?, ?)", row)


def shown(collections: Collections) -> dict[str, list[tuple[str, str, bytes]]]:
    return {
        each.name: [(item.id, item.metadata["seed"], item.objects) for item in each.stored()]
        for each in collections.every()
    }


def test_they_are_taken_over_once_and_nothing_is_lost(tmp_path, caplog):
    folder = tmp_path / "index"
    folder.mkdir()
    mine = [*items(*range(300)), with_objects(1, "with"), with_objects(2, "é'\0")]
    write(folder / "pets.sqlite", "float32", *mine)
    write(folder / "pets=1.sqlite", "int8:4caf4841", *items(1))
    write(folder / "ann@pets=10.sqlite", "", *items(2))
    (folder / "bad.sqlite").write_bytes(b"no database")
    for name, change in CHANGES.items():
        write(folder / f"{name}.sqlite", "float32", *items(*range(301)))
        with closing(sqlite3.connect(folder / f"{name}.sqlite")) as database, database:
            database.executescript(change)
    settings = Settings(index_dir=folder)
    for _ in range(2):
        collections = Collections(open_index(settings), MODEL, D)
        found = shown(collections)
        assert {name: len(rows) for name, rows in found.items()} == {
            "pets": 302,
            "Pets": 1,
            "ann@Pets": 1,
        }
        assert sorted(found["pets"]) == sorted(
            (item.id, item.metadata["seed"], item.objects) for item in mine
        )
        assert [one.dtype for one in collections.describe()] == ["int8:4caf4841", "", "float32"]
        assert "bad.sqlite of an older version is not taken over" in caplog.text
        collections.get("pets").delete(["with"])
        mine = [item for item in mine if item.id != "with"] + [with_objects(1, "with")]
        collections.get("pets").upsert(mine[-1:])
    left = {file.stem for file in folder.glob("*.sqlite")}
    assert left == {"bad", *CHANGES}


def test_another_process_waits_and_stores_nothing_again(tmp_path):
    """Its pages brought back what callers of the first had deleted."""
    write(tmp_path / "pets.sqlite", "float32", *items(1))
    registry, pool = Registry(tmp_path), ThreadPoolExecutor(1)
    with locked(tmp_path):
        waits = pool.submit(take_over, registry, Settings(index_dir=tmp_path))
        with pytest.raises(TimeoutError):
            waits.result(0.3)
        (tmp_path / "pets.sqlite").rename(tmp_path / "pets.sqlite.taken-over")
    waits.result(60)
    assert registry.names() == []
