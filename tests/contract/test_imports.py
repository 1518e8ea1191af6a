"""What may import what, read from the source; and what comes in at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT, sources

CLIENT_MAY = {"samclip", "grpc", "google", "numpy", "PIL", *sys.stdlib_module_names}
MAY_NOT = {
    "samclip_core": {"ray", "grpc", "samclip", "redis", "pydantic", "services", "training"},
    "services": {"training", "tests"},
    "training": {"services", "samclip", "redis", "tests"},
}


def imported(folder: str) -> dict[str, set[str]]:
    """File → the top-level packages that it imports, wherever in the file."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                names.add(str(node.module).split(".")[0])
        found[str(path.relative_to(ROOT))] = names
    assert found
    return found


def test_the_client_needs_little() -> None:
    for file, names in imported("client").items():
        assert names <= CLIENT_MAY, f"{file} imports {names - CLIENT_MAY}"


@pytest.mark.parametrize("folder", MAY_NOT)
def test_folders(folder: str) -> None:
    for file, names in imported(folder).items():
        assert not names & MAY_NOT[folder], f"{file} imports {names & MAY_NOT[folder]}"


def test_proto_is_no_package() -> None:
    assert not (ROOT / "proto/__init__.py").exists()


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import samclip, samclip.cli", {"torch", "ray", "cv2", "pycocotools", "samclip_core"}),
        ("import samclip_core", {"torch", "ray", "grpc", "samclip"}),
        (
            "from samclip_core import errors, geometry, types; from samclip_core.io import image, "
            "masks; from samclip_core.answers import zero_shot",
            {"torch", "ray", "grpc", "samclip"},
        ),
        # Who starts the service imports these to say what runs; replicas bring in the rest.
        ("from services.backbone import app", {"torch", "openvino"}),
        ("from services.heads.segmentation import app", {"torch", "openvino"}),
        ("from services.heads.semantic import app", {"torch", "openvino"}),
        (
            "from samclip_core import SamClip; SamClip.load().embed_text(['a dog'])",
            {"torch", "torchvision", "timm", "open_clip", "segment_anything"},
        ),
    ],
)
def test_importing_brings_little(code: str, without: set[str]) -> None:
    code += "; import sys; print(*sys.modules)"
    path = sources()
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not without & set(run.stdout.split())


def test_no_module_is_called_for_its_drawer() -> None:
    for folder in ("client", "samclip_core", "services", "training"):
        for path in Path(ROOT / folder).rglob("*.py"):
            assert path.stem not in {"utils", "util", "misc", "helpers", "common"}, path
