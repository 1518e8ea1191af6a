"""A real Alertmanager on a free port, with our configuration, and a receiver of its messages."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from tests.checkout import ROOT
from tests.http_server import Handler, serving
from tests.ports import free_port
from tests.prometheus_server import required

CONFIGURATION = ROOT / "deploy/alertmanager/alertmanager.yml"


@contextmanager
def receiver() -> Iterator[tuple[str, SimpleQueue[Any]]]:
    """Yield the address of a receiver, and the queue of the messages that it gets."""
    messages = SimpleQueue[Any]()

    class Receiver(Handler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.body()))
            self.answer()

    with serving(Receiver) as address:
        yield f"{address}/", messages


@contextmanager
def running(directory: Path, url: str) -> Iterator[str]:
    """Run the deployed configuration with ``url`` as the receiver; yield its address."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    configuration["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (team,) = configuration["receivers"]
    (directory / "url").write_text(f"{url}\n")
    team["webhook_configs"][0]["url_file"] = str(directory / "url")
    file = directory / "alertmanager.yml"
    file.write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = [
        required("prometheus-alertmanager"),
        f"--config.file={file}",
        f"--storage.path={directory / 'alerts'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
