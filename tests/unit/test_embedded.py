import contextlib
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from samclip_core.errors import Unavailable
from services.retrieval import collection, embedded
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Query
from tests.conftest import ROOT
from tests.unit.test_engines import D, items, vector


def test_a_damaged_collection_does_not_take_the_others_down(tmp_path, caplog):
    collections = EmbeddedCollections(tmp_path, "m" * 64, D)
    collections.get_or_make("good").upsert(items(1))
    collections.close()
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database" * 100)
    again = EmbeddedCollections(tmp_path, "m" * 64, D)
    assert [d.name for d in again.describe()] == ["good"]
    assert "bad.sqlite" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR


def open_files(directory: Path) -> int:
    """How many descriptors of this process are files of the directory."""
    found = 0
    for descriptor in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(descriptor.path).startswith(f"{directory}/pets-")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files as Linux does")
def test_collections_that_are_not_in_use_are_closed_and_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "MOST_OPEN", 3, raising=False)
    collections = EmbeddedCollections(tmp_path, "m" * 64, D)
    for _ in range(2):
        for number in range(10):
            collections.get_or_make(f"pets-{number}").upsert(items(number, 10 + number))
            assert open_files(tmp_path) <= 3 * 3
    assert [d.count for d in collections.describe()] == [2] * 10
    assert open_files(tmp_path) <= 3 * 3
    collections.close()

    again = EmbeddedCollections(tmp_path, "m" * 64, D)
    assert len(again) == 10
    assert [(d.name, d.count, d.dimension, d.digest) for d in again.describe()] == [
        (f"pets-{number}", 2, D, "m" * 64) for number in range(10)
    ]
    assert open_files(tmp_path) == 0  # to describe them is not to open them
    for number in range(10):
        found = again.get(f"pets-{number}").search(Query(vector(number), 1))
        assert [hit.id for hit in found] == [f"id {number}"]
    assert again.drop("pets-0") == 2
    assert len(again) == 9
    again.close()


def test_more_collections_than_the_process_may_open_files_are_all_answered(tmp_path):
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 96))
from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Query
from tests.unit.test_engines import D, items, vector
collections = EmbeddedCollections(Path(sys.argv[1]), "m" * 64, D)
for number in range(60):
    collections.get_or_make(f"pets-{number}").upsert(items(number))
for number in range(60):
    hit, = collections.get(f"pets-{number}").search(Query(vector(number), 1))
    assert hit.id == f"id {number}"
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "proto"), str(ROOT)])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=250)


def test_the_process_may_open_as_many_files_as_its_hard_limit(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    EmbeddedCollections(tmp_path, "m" * 64, D).close()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_collection_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    collections = EmbeddedCollections(tmp_path, "m" * 64, D)
    broken = collection._SCHEMA + ";CREATE NONSENSE"
    with monkeypatch.context() as patch:
        patch.setattr(collection, "_SCHEMA", broken)
        with pytest.raises(Unavailable):
            collections.get_or_make("pets")
    collections.get_or_make("pets").upsert(items(1))
    assert collections.describe("pets")[0].count == 1
    collections.close()
