"""An upgrade from one Ray cluster of the image to another one, and its rollback, under load.

``make cluster`` runs it, which takes minutes. Each machine is a container on one Docker network.
"""

import itertools
import os
import secrets
import shutil
import subprocess
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
import yaml

from tests.checkout import ROOT
from tests.image import engine
from tests.image.engine import docker as run
from tests.image.stack import Override, photograph, until
from tests.ports import free_port

pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="takes minutes: run make cluster"),
]

NEXT = "samclip:next"
START_S = 420
CALLERS = 4
LABELS = ["a cat", "a rocket"]
NETWORK = "samclip-machines"


class Reset:
    """Removes the value that the compose files set."""


class Plain(yaml.SafeDumper):
    """Writes no anchors: compose ignores tags in what an anchor repeats."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Plain.add_representer(Reset, lambda dumper, _: dumper.represent_scalar("!reset", "null"))


class Machine:
    """A machine with its own ``.env``; ``addresses`` are those of its front door, by port.

    Its node reports eight processors, for the replicas of the shipped configuration.
    """

    def __init__(self, name: str, folder: Path, variables: dict[str, str]):
        self.name = name
        self.variables = variables
        node = {
            **{"hostname": name, "container_name": name},
            "environment": {"RAY_OVERRIDE_RESOURCES": '{"CPU": 8}'},
        }
        self.addresses = {port: f"127.0.0.1:{free_port()}" for port in (8000, 9000)}
        door = {"ports": Override(f"{ours}:{port}" for port, ours in self.addresses.items())}
        own = {"head": node, "worker": node, "front-door": door, "redis": {}}
        network = {"network_mode": Reset(), "networks": [NETWORK]}
        services = {service: values | network for service, values in own.items()}
        self._override = folder / f"{name}.yml"
        networks = {NETWORK: {"external": True}}
        self._override.write_text(
            yaml.dump({"services": services, "networks": networks}, Dumper=Plain)
        )

    def compose(self, *words: str, check: bool = True) -> bytes:
        """Run a compose command on this machine; return its output."""
        files = ("--file", "docker-compose.cluster.yml", "--file", str(self._override))
        done = subprocess.run(
            ["docker", "compose", "-p", f"samclip-{self.name}", *files, *words],
            cwd=ROOT,
            env=os.environ | self.variables,
            capture_output=True,
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start(self, *services: str) -> None:
        self.compose("up", "--detach", *services)

    def image(self, service: str) -> str:
        container = self.compose("ps", "--quiet", service).decode().strip()
        return run("inspect", "--format", "{{.Config.Image}}", container)

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "10")


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
    assert site.machines["new-1"].compose("exec", "-T", "head", "samclip", "backup", "-")
