"""What the compose files describe, started as deploy/README.md says, on free ports."""

import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import samclip
import yaml

from tests import tls
from tests.checkout import ROOT
from tests.image.engine import docker

FILES = ("docker-compose.yml", "docker-compose.keys.yml", "docker-compose.tls.yml")
START_S = 240
"""Two slow cores compile the graphs at the first start."""


class Override(list):
    """A list that replaces the one of the compose files instead of extending it."""


yaml.SafeDumper.add_representer(
    Override, lambda dumper, items: dumper.represent_sequence("!override", items)
)


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until the condition holds; fail, naming ``what``, if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


class Stack:
    """The compose project of a test. Grafana is left out: Debian does not package it."""

    def __init__(self, image: str, folder: Path):
        self.keys = folder / "keys"
        for name in ("service", "prometheus"):
            (self.keys / name).mkdir(parents=True)
        self.tls = folder / "tls"
        self.tls.mkdir()
        tls.certificate(self.tls, "service")
        for private in (self.keys / "service", self.tls, *self.tls.iterdir()):
            os.chown(private, 10001, 10001)
        self._override = folder / "override.yml"
        ports = {"samclip": (8000, 9000), "prometheus": (9090,), "alertmanager": (9093,)}
        services = {
            name: {"ports": Override(f"127.0.0.1::{port}" for port in published)}
            for name, published in ports.items()
        }
        services["samclip"]["image"] = image
        services["keys"] = {"image": image}
        self._override.write_text(yaml.safe_dump({"services": services}))

    def compose(self, *words: str) -> str:
        return self.piped(*words).decode().strip()

    def piped(self, *words: str, given: bytes = b"") -> bytes:
        """Run a compose command with this input; return its output as it is."""
        names = [*FILES, self._override]
        files = [word for name in names for word in ("--file", str(name))]
        folders = {"SAMCLIP_KEYS": str(self.keys), "SAMCLIP_TLS": str(self.tls)}
        environment = {**os.environ, **folders}
        command = ["docker", "compose", "-p", "samclip-test", *files, *words]
        run = subprocess.run(command, cwd=ROOT, env=environment, input=given, capture_output=True)
        assert run.returncode == 0, run.stderr.decode()
        return run.stdout

    def up(self) -> None:
        """Start the services and wait until they are healthy."""
        services = ("samclip", "redis", "prometheus", "alertmanager")
        self.compose("up", "--detach", "--wait", "--wait-timeout", str(START_S), *services)

    def add_key(self, name: str, *scopes: str) -> str:
        words = [word for scope in scopes for word in ("--scope", scope)]
        return self.compose("run", "--rm", "-T", "keys", "add", name, *words)

    def address(self, service: str, port: int) -> str:
        return self.compose("port", service, str(port))

    def http(self, key: str = "") -> httpx.Client:
        return httpx.Client(
            base_url=f"https://{self.address('samclip', 8000)}",
            headers={"x-api-key": key} if key else {},
            verify=ssl.create_default_context(cafile=self.tls / "service.pem"),
            timeout=60,
        )

    def client(self, key: str) -> samclip.Client:
        trusted = samclip.credentials(ca=self.tls / "service.pem")
        return samclip.Client(self.address("samclip", 9000), api_key=key, tls=trusted)

    def prometheus(self, path: str) -> dict[str, Any]:
        url = f"http://{self.address('prometheus', 9090)}/api/v1/{path}"
        found: dict[str, Any] = httpx.get(url, timeout=30).json()["data"]
        return found

    def targets(self) -> dict[str, str]:
        """Return the health of each job's target in Prometheus."""
        active = self.prometheus("targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}

    def state(self, service: str) -> dict[str, object]:
        """Return Docker's own description of the state of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service)
        found: dict[str, object] = json.loads(docker("inspect", container))[0]["State"]
        return found


def photograph(name: str) -> bytes:
    return (ROOT / f"services/gateway/playground/samples/{name}.jpg").read_bytes()


def lines(container: str) -> str:
    """Return all that a container has printed."""
    run = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
    return run.stdout + run.stderr
