"""An operator's walk over two Ray clusters of the image: upgrade, rollback, backup and restore.

``make cluster`` runs it, which takes minutes. Each machine is a container on one Docker network.
"""

import itertools
import os
import secrets
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import samclip

from tests.image import engine
from tests.image.engine import docker as run
from tests.image.machine import NETWORK, Machine
from tests.image.stack import photograph, until

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="takes minutes: run make cluster"),
]

NEXT = "samclip:next"
START_S = 420
CALLERS = 4
LABELS = ["a cat", "a rocket"]


@dataclass
class Site:
    """The machines of two clusters, and one with only a front door; the key of a caller."""

    machines: dict[str, Machine]
    key: str = ""

    def deploy(self, head: str, worker: str) -> None:
        first = self.machines[head]
        first.start("head")
        self.machines[worker].start("worker")
        ask = ("exec", "-T", "head", "ray", "status")
        until(
            lambda: first.compose(*ask, check=False).count(b" 1 node_") == 2,
            *(120, "the worker has joined"),
        )
        first.compose("exec", "-T", "head", "serve", "deploy", "/deploy/serve_config.yaml")

    def open(self, name: str) -> None:
        """Start the front door of a machine, or replace it after a change; wait until it serves."""
        self.machines[name].start("front-door")
        until(lambda: self.is_ready(name), START_S, f"the front door of {name} is ready")

    def is_ready(self, name: str) -> bool:
        url = f"http://{self.machines[name].addresses[8000]}/readyz"
        try:
            return httpx.get(url, headers={"x-api-key": self.key}, timeout=30).is_success
        except httpx.TransportError:
            return False

    def switch(self, to: str) -> None:
        """Give both front doors of the callers the ``.env`` of a node, one after the other."""
        for door in ("old-1", "door"):
            self.machines[door].variables |= self.machines[to].variables
            self.open(door)

    def client(self, name: str) -> samclip.Client:
        return samclip.Client(self.machines[name].addresses[9000], api_key=self.key)

    def found(self, name: str) -> list[tuple[str, float]]:
        with self.client(name) as client:
            return [(hit.id, round(hit.score, 5)) for hit in client.search("pets", text="a cat")]

    @contextmanager
    def callers(self) -> Iterator[Counter[str]]:
        """Count the answers to callers that try the other front door if one is not there."""
        answers: Counter[str] = Counter()
        ended = threading.Event()

        def call(turns: Iterator[str]) -> None:
            while not ended.wait(0.05):
                for attempt in ("at once", "from the other door", "lost"):
                    if attempt == "lost":
                        answers[attempt] += 1
                        break
                    try:
                        with self.client(next(turns)) as client:
                            reply = client.image(photograph("chelsea")).classify(LABELS)
                    except samclip.Unavailable:
                        continue
                    answers[attempt if reply[0].label == "a cat" else "wrong"] += 1
                    break

        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(call, itertools.cycle(["old-1", "door"])) for _ in range(CALLERS)]
            try:
                yield answers
            finally:
                ended.set()
        for each in calls:
            each.result()


@pytest.fixture(scope="module")
def network(docker: None) -> Iterator[None]:
    tag = engine.STAND_INS["redis"]
    if not engine.available(tag):
        engine.make_stand_in("redis", tag)
    run("network", "create", NETWORK)
    try:
        yield
    finally:
        run("network", "rm", NETWORK)


@pytest.fixture(scope="module")
def site(image: str, network: None) -> Iterator[Site]:
    """Start the old cluster and two front doors as deploy/README.md says."""
    engine.build(NEXT, "VERSION=0.0.next", "REVISION=cafe")
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "service"
        keys.mkdir()
        shutil.chown(keys, 10001, 10001)
        common = {
            "REDIS_PASSWORD": "a-password",
            "SAMCLIP_REDIS_URL": "redis://:a-password@redis:6379/0",
            "SAMCLIP_FRONT_DOOR_SECRET": secrets.token_hex(32),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "SAMCLIP_KEYS": folder,
        }
        site = Site({})
        for name in ("old-1", "old-2", "door", "new-1", "new-2"):
            new = name.startswith("new")
            head = "new-1" if new else "old-1"
            own = {"SAMCLIP_HEAD": head, "SAMCLIP_SERVE_HOST": head}
            tag = {"SAMCLIP_IMAGE": NEXT if new else image}
            site.machines[name] = Machine(name, Path(folder), common | own | tag)
        try:
            scopes = ("--scope", "read", "--scope", "index")
            added = ("run", "--rm", "-T", "keys", "add", "ann", *scopes)
            site.key = site.machines["door"].compose(*added).decode().strip()
            site.machines["old-1"].start("redis")
            site.deploy("old-1", "old-2")
            site.open("old-1")
            site.open("door")
            yield site
        finally:
            for machine in site.machines.values():
                machine.remove()


def test_an_upgrade_and_its_rollback_lose_nothing(site: Site, image: str) -> None:
    with site.client("door") as client:
        client.index("pets", {name: photograph(name) for name in ("chelsea", "rocket")})
    before = site.found("door")
    site.deploy("new-1", "new-2")
    site.open("new-1")
    for node, tag in (("new-2", NEXT), ("old-2", image)):
        with site.callers() as answers:
            site.switch(node)
            until(lambda answers=answers: answers["at once"] > 50, 60, "callers have answers")
        assert set(answers) <= {"at once", "from the other door"}, answers
        assert site.machines["door"].image("front-door") == tag
        assert site.found("door") == before


def test_collections_are_restored_into_the_other_cluster(site: Site) -> None:
    backup = ("exec", "-T", "head", "samclip", "backup", "-")
    restore = ("exec", "-T", "head", "samclip", "restore", "-")
    before = site.found("door")
    kept = site.machines["old-1"].compose(*backup)
    site.machines["old-1"].compose("exec", "-T", "redis", "redis-cli", "FLUSHALL")
    with pytest.raises(samclip.NotFound):
        site.found("door")
    site.machines["new-1"].compose(*restore, given=kept)
    assert site.found("door") == site.found("new-1") == before
