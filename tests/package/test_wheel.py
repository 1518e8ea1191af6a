"""The built wheel: the client that ``pip install samclip`` brings works, and no file is missing."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT

pytestmark = pytest.mark.package


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in run("git", "ls-files", cwd=ROOT).splitlines():  # setuptools leaves build/ behind
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder)
    run(*pip, source, cwd=folder)
    (found,) = folder.glob("samclip-*.whl")
    return found


def test_it_holds_every_tracked_file_of_the_packages_and_no_test(wheel: Path) -> None:
    folders = ("client/samclip", "samclip_core", "services", "training")
    tracked = run("git", "ls-files", *folders, cwd=ROOT).splitlines()
    expected = {file.removeprefix("client/") for file in tracked}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_the_client_works_with_its_own_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv/bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    assert "classify" in run(programs / "samclip", "--help", cwd=tmp_path)
    code = "import samclip; print(samclip.Client('127.0.0.1:1', timeout=1) is not None)"
    assert run(programs / "python", "-c", code, cwd=tmp_path) == "True\n"
    refused = subprocess.run(
        [programs / "samclip", "serve"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "samclip[serve]" in refused.stderr
