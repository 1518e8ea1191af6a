"""A process is killed while items with objects are written: each item and its objects agree."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collections, Item
from services.retrieval.redis_client import connect
from services.retrieval.vector_sets import VectorSets
from tests.checkout import ROOT, sources
from tests.redis_server import RedisServer
from tests.vectors import MODEL, D, with_objects

pytestmark = pytest.mark.slow

WRITER = """
import sys
from tests.integration.test_killed_while_indexing import changes, opened
pets = opened(sys.argv[1]).get_or_make("pets", "float32")
print("ready", flush=True)
for item in changes():
    pets.upsert([item]) if item.metadata["seed"] != "0" else pets.delete([item.id])
    print("done", flush=True)
"""


def opened(place: str) -> Collections:
    if place.startswith("redis:"):
        return VectorSets(connect(place), MODEL, D)
    return EmbeddedCollections(Path(place), MODEL, D)


def changes() -> Iterator[Item]:
    """Yield items to add, with and without objects, and with seed 0 items to delete."""
    for number in itertools.count(1):
        id = f"id {number % 5}"
        yield with_objects(number if number % 7 else 0, id, number % 4)


def after(done: int) -> dict[str, tuple[str, bytes]]:
    """Return the seed and the objects of each item after so many changes."""
    held = dict[str, tuple[str, bytes]]()
    for item in itertools.islice(changes(), done):
        held.pop(item.id, None)
        if item.metadata["seed"] != "0":
            held[item.id] = item.metadata["seed"], item.objects
    return held


@pytest.mark.parametrize("written", [3, 40, 111])
@pytest.mark.parametrize("engine", ["embedded", "redis"])
def test_an_item_and_its_objects_agree(tmp_path, engine, written):
    store = RedisServer(tmp_path, ("--appendonly", "yes", "--appendfsync", "always"))
    place = store.url if engine == "redis" else str(tmp_path)
    if engine == "redis":
        store.start()
    command = [sys.executable, "-c", WRITER, place]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{sources()}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        done = sum(line == "done\n" for line in itertools.islice(writer.stdout, written))
        store.kill() if engine == "redis" else writer.kill()
        done += sum(line == "done\n" for line in writer.stdout)  # acknowledged before the kill
    assert done >= written
    if engine == "redis":
        store.start()
    try:
        found = opened(place)
        pets = found.get("pets")
        held = {item.id: (item.metadata["seed"], item.objects) for item in pets.stored()}
        assert held in (after(done), after(done + 1))  # the last change was not acknowledged
        found.close()
    finally:
        if engine == "redis":
            store.kill()
