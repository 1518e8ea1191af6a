"""Concepts and objects that are written while the replica, the service or Redis is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import samclip

from tests import redis_server
from tests.e2e.conftest import Service, start
from tests.faults import processes
from tests.faults.test_processes import FAULTS
from tests.in_process import png

pytestmark = [pytest.mark.e2e, FAULTS]


Write = Callable[[samclip.Client, str, int], None]


def add_concept(client: samclip.Client, name: str, number: int) -> None:
    client.add_concept(name, [samclip.Example(png(number % 256), box=(5, 0, 20, 30))])


def add_objects(client: samclip.Client, name: str, number: int) -> None:
    done = client.index("objects", {name: png(number % 256)}, objects=True)
    assert (done.indexed, done.errors) == (1, {})


class Writer:
    """Adds one concept or image after another; ``done`` are those that were acknowledged."""

    def __init__(self, address: str, write: Write = add_concept) -> None:
        self.address, self.done, self._write = address, dict[str, int](), write
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with samclip.Client(self.address, timeout=30) as client:
            for number in count():
                name = f"concept {number}"
                while name not in self.done:
                    if self._ended.is_set():
                        return
                    with suppress(samclip.ServiceError):
                        self._write(client, name, number)
                        self.done[name] = number

    def wait(self, most: int) -> None:
        """Wait until this many are acknowledged."""
        deadline = time.monotonic() + 300
        while len(self.done) < most:
            assert time.monotonic() < deadline, f"{len(self.done)} of {most} are written"
            time.sleep(0.01)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def running(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Callable[[], Service]]:
    """Return a function that starts a service; all have the same folder of collections."""
    services: list[Service] = []

    def begin() -> Service:
        folder = tmp_path / f"service-{len(services)}"
        folder.mkdir()
        services.append(start(folder, str(tiny_checkpoint), INDEX_DIR=tmp_path / "index"))
        return services[-1]

    yield begin
    for service in services:
        service.stop()


def test_no_acknowledged_concept_is_lost(running: Callable[[], Service]) -> None:
    service = running()
    writer = Writer(service.address)
    try:
        writer.wait(10)
        processes.kill(service, processes.replica("retrieval"))
        writer.wait(30)
        for pid in service.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        writer.end()
    with samclip.Client(running().address) as client:
        found = {concept.name for concept in client.concepts()}
        assert found >= writer.done.keys()
        last, number = [*writer.done.items()][-1]
        labels = [f"concept:{last}", "a dog"]
        assert len(client.image(png(number % 256)).classify(labels)) == 2


class Reader:
    """Searches for the same objects again and again; ``answers`` are all that it was given."""

    def __init__(self, address: str) -> None:
        self.address, self.answers = address, list[list[object]]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with samclip.Client(self.address, timeout=30) as client:
            while not self._ended.is_set():
                with suppress(samclip.ServiceError):
                    self.answers.append(found(client))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def found(client: samclip.Client) -> list[object]:
    """Return what a search for objects finds in a collection that does not change."""
    hits = client.search("known", image=png(3), objects=True)
    return [(hit.id, hit.score, hit.box, hit.mask and hit.mask.rle) for hit in hits]


def test_a_killed_redis_loses_no_acknowledged_object_or_concept(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Nor does anybody get a wrong answer meanwhile."""
    durable = "--appendonly", "yes", "--appendfsync", "always"
    with redis_server.running(tmp_path, *durable) as store:
        service = start(tmp_path, str(tiny_checkpoint), REDIS_URL=store.url)
        threads: list[Writer | Reader] = []
        try:
            with samclip.Client(service.address, timeout=60) as client:
                images = {f"known {number}": png(number) for number in range(6)}
                assert not client.index("known", images, objects=True).errors
                expected = found(client)
                assert expected
                objects = Writer(service.address, add_objects)
                concepts, reader = Writer(service.address), Reader(service.address)
                threads += objects, concepts, reader
                for kills in (1, 2):
                    objects.wait(10 * kills)
                    concepts.wait(10 * kills)
                    store.kill()
                    time.sleep(2)
                    store.start()
                objects.wait(30)
                concepts.wait(30)
                for thread in threads:
                    thread.end()
                hits = client.search("objects", image=png(0), objects=True, top_k=10_000)
                assert {hit.id for hit in hits} >= objects.done.keys()
                assert {one.name for one in client.concepts()} >= concepts.done.keys()
                assert reader.answers
                assert all(answer == expected for answer in [*reader.answers, found(client)])
        finally:
            for thread in threads:
                thread.end()
            service.stop()
