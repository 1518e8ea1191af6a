"""A machine of a Ray cluster by docker-compose.cluster.yml, in a network that the tests make."""

import os
import subprocess
from pathlib import Path

import yaml

from tests.checkout import ROOT
from tests.image.engine import docker
from tests.image.stack import Override
from tests.ports import free_port

NETWORK = "samclip-machines"


class Reset:
    """Removes the value that the compose files set."""


class Plain(yaml.SafeDumper):
    """Writes equal parts again: compose ignores tags in a part that it finds by its anchor."""

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
        services = {
            service: {**own, "network_mode": Reset(), "networks": [NETWORK]}
            for service, own in {
                "head": node,
                "worker": node,
                "front-door": door,
                "redis": {},
            }.items()
        }
        self._override = folder / f"{name}.yml"
        networks = {NETWORK: {"external": True}}
        self._override.write_text(
            yaml.dump({"services": services, "networks": networks}, Dumper=Plain)
        )

    def compose(self, *words: str, given: bytes = b"", check: bool = True) -> bytes:
        """Run a compose command on this machine, with this input; return its output."""
        files = ("--file", "docker-compose.cluster.yml", "--file", str(self._override))
        run = subprocess.run(
            ["docker", "compose", "-p", f"samclip-{self.name}", *files, *words],
            **{"cwd": ROOT, "env": os.environ | self.variables, "input": given},
            capture_output=True,
        )
        assert not check or run.returncode == 0, run.stderr.decode()
        return run.stdout

    def start(self, *services: str) -> None:
        self.compose("up", "--detach", *services)

    def image(self, service: str) -> str:
        container = self.compose("ps", "--quiet", service).decode().strip()
        return docker("inspect", "--format", "{{.Config.Image}}", container)

    def remove(self) -> None:
        self.compose("down", "--volumes", "--timeout", "10")
