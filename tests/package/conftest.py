"""What ``make dist`` has built, and bare environments in which it is installed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkout import ROOT

VERSIONS = ("3.11", "3.12", "3.13")
"""The versions of Python that the classifiers in pyproject.toml name."""

MARK = "of_an_application"
"""A name in the packages that another application has beside ours."""
Install = Callable[[str, str], Path]


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def interpreter(version: str) -> str:
    """Return a Python of this version, or skip the test."""
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no python{version}")
    return found


@pytest.fixture(scope="session")
def wheel() -> Path:
    (found,) = (ROOT / "dist").glob("samclip-*.whl")
    return found


@pytest.fixture(scope="session")
def sdist() -> Path:
    (found,) = (ROOT / "dist").glob("samclip-*.tar.gz")
    return found


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Install:
    """Return a function that installs the wheel, and maybe an extra, for a version of Python.

    Beside them is an application with packages of its own, called ``services`` and ``training``.
    """

    def made(version: str, extra: str) -> Path:
        folder = tmp_path_factory.mktemp(f"python{version}")
        run(interpreter(version), "-m", "venv", "venv", cwd=folder)
        programs = folder / "venv/bin"
        run(programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}{extra}", cwd=folder)
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        for name in ("services", "training"):
            (packages / name).mkdir()
            (packages / name / "__init__.py").write_text(f"{MARK} = '{name}'\n")
        return programs

    return made
