"""A temporary environment with PyTorch: converting needs it, serving on a CPU does not."""

import os
import re
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samclip_core.errors import CheckpointError

FOLDER = Path("~/.cache/samclip/converting")
GIGABYTES = 1.5
"""On the disk, for a moment; PyTorch for CPUs is half of it."""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyPI's PyTorch for Linux is a build for GPUs, of several gigabytes."""
_OWN_SETTINGS = r"\.(index-url|extra-index-url|no-index|find-links|constraint|proxy)="
"""Those of pip that uv would not read. They say where PyTorch is from, too."""


def lacking() -> list[str]:
    """Return what converting needs and this installation lacks; nothing if it has PyTorch.

    Raises CheckpointError if no installer is here that could add it.
    """
    if find_spec("torch"):
        return []
    if not (_uv() or find_spec("pip")):
        raise CheckpointError(
            "converting needs PyTorch, and neither uv nor pip is here to install it: install one"
        )
    here = {re.sub("[_.]", "-", one.name).lower() for one in distributions()}
    needed = [one for one in requires("samclip") or [] if re.search("extra == .export.", one)]
    return [o.partition(";")[0] for o in needed if re.split(r"[^\w-]", o)[0].lower() not in here]


@contextmanager
def made(requirements: Sequence[str]) -> Iterator[Path]:
    """Yield a Python that has these packages beside those of this one; remove it afterwards.

    SIGTERM is treated as Ctrl-C. What a killed process has left behind is removed first.
    The caller holds a lock. Raises CheckpointError if they cannot be installed.
    """
    folder = FOLDER.expanduser()
    if (free := shutil.disk_usage(folder.parent).free / 1e9) < GIGABYTES:
        raise CheckpointError(f"PyTorch needs {GIGABYTES} GB in {folder}, which has {free:.1f}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for making, installing in _ways(folder / "environment", requirements):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "tmp").mkdir(parents=True)
            if all(_run(command, folder) for command in (making, installing)):
                break
        else:
            raise CheckpointError("PyTorch could not be installed: see above")
        _add_packages_of_this_one(folder / "environment")
        yield folder / "environment/bin/python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _ways(folder: Path, requirements: Sequence[str]) -> list[tuple[list[Any], list[Any]]]:
    """Return how to make and fill an environment, by uv and by pip, the better way first."""
    ways, python = list[tuple[list[Any], list[Any]]](), folder / "bin/python"
    if uv := _uv():
        install = [uv, "pip", "install", "--no-cache", "--python", python, "--torch-backend", "cpu"]
        ways.append(([uv, "venv", "--python", sys.executable, folder], [*install, *requirements]))
    if find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "config", "list"]
        settings = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
        own = re.search(_OWN_SETTINGS, settings)
        install = [python, "-m", "pip", "install", "--no-cache-dir"]
        install += [] if own else ["--extra-index-url", TORCH_INDEX]
        way = [sys.executable, "-m", "venv", folder], [*install, *requirements]
        ways.insert(0 if own else len(ways), way)
    return ways


def _run(command: Sequence[Any], folder: Path) -> bool:
    """Run an installer, whose own temporary files are in ``folder`` too."""
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    return not subprocess.run(command, stdout=2, env=environment, check=False).returncode


def _add_packages_of_this_one(environment: Path) -> None:
    """Have an environment find this one's packages where it has none of its own."""
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    lines = [
        f"import site; site.addsitedir({folder!r})\n"
        for folder in (*site.getsitepackages(), site.getusersitepackages())
    ]
    (packages / "samclip.pth").write_text("".join(lines))


def _uv() -> str | None:
    beside = Path(sys.executable).parent
    return shutil.which("uv", path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
