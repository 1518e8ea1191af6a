"""The how-tos of docs/integrations run as written, with the real clients and a key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samclip_core.io import checkpoint
from tests import documents
from tests.checkout import ROOT, sources
from tests.clients.conftest import FIFTYONE, KEY, PYTHON, need
from tests.e2e.conftest import Service

pytestmark = pytest.mark.clients

NEEDS = {
    "label-studio": (),
    "x-anylabeling": (),
    "cvat": (),
    "mcp": (),
    "fiftyone": ("fiftyone",),
    "hugging-face": (),
    "openai": ("openai", "langchain_openai", "llama_index.embeddings.openai_like"),
    "open-inference": ("tritonclient.http", "tritonclient.grpc"),
}
"""The modules that the blocks of each how-to import."""
BLOCKS = [
    pytest.param(name, language, code, id=f"{name}-{number}")
    for name in NEEDS
    for number, (language, code) in enumerate(
        documents.runnable(ROOT / f"docs/integrations/{name}.md")
    )
]


def test_every_how_to_is_run() -> None:
    assert {path.stem for path in (ROOT / "docs/integrations").glob("*.md")} == set(NEEDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Path:
    made = tmp_path_factory.mktemp("how-tos")
    (made / "cat.jpg").write_bytes(photo)
    return made


@pytest.mark.parametrize(("name", "language", "code"), BLOCKS)
def test_block(
    name: str, language: str, code: str, service: Service, weights: Path, folder: Path
) -> None:
    there = FIFTYONE if name == "fiftyone" else PYTHON
    if NEEDS[name]:
        need(*NEEDS[name], python=there)
    code = code.replace('"edge"', f'"{checkpoint.read_config(weights).name}"')
    code = code.replace("127.0.0.1:9000", service.address)
    code = code.replace("127.0.0.1:8000", service.url.removeprefix("http://"))
    python = str(there) if NEEDS[name] else sys.executable  # which has the rest
    command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [python, "-c"]
    path = os.pathsep.join((str(Path(python).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "SAMCLIP_API_KEY": KEY, "PYTHONPATH": sources()}
    run = subprocess.run(
        [*command, code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout
