"""Real clients of other protocols, unmodified, against the real service."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.checkout import ROOT
from tests.clients.conftest import FIFTYONE, KEY, LABEL_STUDIO, PYTHON, TOKEN, need
from tests.e2e.conftest import Service

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]


def run(script: str, *arguments: object, python: Path = PYTHON) -> None:
    """Run a script of this folder, which asserts what it finds and then prints "ok"."""
    command = [python, ROOT / "tests/clients" / script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ok"


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    path.write_bytes(photo)
    return path


def test_openai(service: Service, cat: Path) -> None:
    need("openai", "numpy")
    run("openai_client.py", service.url, KEY, cat)


def test_tritonclient(service: Service, cat: Path) -> None:
    need("tritonclient.http", "tritonclient.grpc")
    run("triton_client.py", service.url.removeprefix("http://"), service.address, KEY, cat)


def test_label_studio(service: Service, label_studio: str, cat: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.jpg"  # a file that no other test has sent
    Image.open(cat).save(new, quality=80)
    python = LABEL_STUDIO / "python"
    run("label_studio_client.py", label_studio, TOKEN, service.url, KEY, new, python=python)


def test_fiftyone(service: Service, cat: Path) -> None:
    need("fiftyone", python=FIFTYONE)
    run("fiftyone_client.py", service.address, KEY, cat, python=FIFTYONE)
