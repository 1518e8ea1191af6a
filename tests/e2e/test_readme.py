"""The examples of the documents run as written, in order, against a running service."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import documents
from tests.checkout import ROOT, sources
from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e

EXAMPLES = [
    example
    for name in ("README.md", "docs/api.md", "docs/cli.md", "docs/tutorial.md")
    for example in documents.runnable(ROOT / name)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the working directory that the examples share."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def environment(folder: Path, service: Service) -> dict[str, str]:
    """Return an environment in which samclip uses our service, and grpcurl exists."""
    python = shlex.quote(sys.executable)
    scripts = {"samclip": f'{python} -m samclip.cli "$@"'}
    if not shutil.which("grpcurl"):
        scripts["grpcurl"] = f'{python} -m tests.e2e.grpcurl "$@"'
    programs = folder / "bin"
    programs.mkdir()
    for name, line in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {line}\n")
        (programs / name).chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": sources(),
        "SAMCLIP_SERVER": service.address,
    }


def run_as_written(
    examples: list[tuple[str, str]], service: Service, folder: Path, environment: dict[str, str]
) -> None:
    """Run the examples of a document in their order: later ones need what earlier ones left."""
    for language, written in examples:
        code = written.replace("127.0.0.1:9000", service.address)
        code = code.replace("127.0.0.1:8000", service.url.removeprefix("http://"))
        command = (
            ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        )
        run = subprocess.run(
            [*command, code], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{code}\n{run.stderr}"
        assert run.stdout or "io.imsave" in code or "-o photo.jpg" in code, code


def test_the_examples_run_and_leave_pictures(
    service: Service, folder: Path, environment: dict[str, str]
) -> None:
    run_as_written(EXAMPLES, service, folder, environment)
    pictures = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.png")}
    of_folder = {"masks/cat/overlay.png", "masks/cat/mask-000.png", "masks/coffee/overlay.png"}
    assert pictures == {
        *("cat/mask-000.png", "cat/overlay.png", "semantic.png", "heat.png"),
        *of_folder,
        *("alike/cat/overlay.png", "alike/cat/mask-000.png", "alike/coffee/overlay.png"),
    }
    assert (folder / "first/overlay.png").exists()
    assert (folder / "cutout.png").exists()
