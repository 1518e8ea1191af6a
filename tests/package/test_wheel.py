"""The wheel and the sdist hold what they should, and work where nothing else is installed."""

import json
import shutil
import subprocess
import tarfile
import zipfile
from email import message_from_bytes
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import samclip
from PIL import Image

from services.gateway.browser_decoder import PACKED, SCRIPT
from tests import own_heads
from tests.checkout import ROOT
from tests.e2e.conftest import start
from tests.package.conftest import MARK, VERSIONS, Install, interpreter, run

pytestmark = pytest.mark.package

FOLDERS = {  # in the clone and in the wheel
    "client/samclip": "samclip",
    "samclip_core": "samclip_core",
    "services": "samclip/_bundled/services",
    "training": "samclip/_bundled/training",
}
LARGEST = 100 * 2**20
"""Of a file on PyPI."""
PHOTOGRAPH = ROOT / "services/gateway/playground/samples/chelsea.jpg"


BROWSER = {f"services/gateway/playground/onnxruntime/{name}" for name in (SCRIPT, PACKED)}
"""What npm brings, where there is one."""


def tracked() -> set[str]:
    """Return the files of the packages, without what git does not know."""
    return set(run("git", "ls-files", *FOLDERS, cwd=ROOT).splitlines())


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_no_test(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed - {f"samclip/_bundled/{file}" for file in BROWSER} == {
        file.replace(folder, place, 1)
        for file in tracked()
        for folder, place in FOLDERS.items()
        if file.startswith(f"{folder}/")
    }


def test_the_sdist_holds_the_same_files_and_what_builds_them(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", ".gitignore"}
    assert names - made - BROWSER == tracked() | {"LICENSE", "README.md", "pyproject.toml"}


def test_the_checkpoint_is_inside_and_both_files_fit_pypi(wheel: Path, sdist: Path) -> None:
    sizes = {each.filename: each.file_size for each in zipfile.ZipFile(wheel).infolist()}
    weights = "samclip_core/checkpoints/edge/model.safetensors"
    assert sizes[weights] == (ROOT / weights).stat().st_size
    assert wheel.stat().st_size < LARGEST
    assert sdist.stat().st_size < LARGEST


def test_the_metadata_names_version_licence_readme_and_pythons(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Version"] == samclip.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier")
    prefix = "Programming Language :: Python :: 3."
    named = {each.removeprefix(prefix) for each in classifiers if each.startswith(prefix)}
    assert named == {version.removeprefix("3.") for version in VERSIONS}
    assert {"core", "serve", "gpu", "train", "export"} <= {*metadata.get_all("Provides-Extra")}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_client_works_with_its_own_dependencies_alone(version: str, install: Install) -> None:
    programs = install(version, "")
    folder = programs.parent
    assert "classify" in run(programs / "samclip", "--help", cwd=folder)
    code = "import samclip; print(samclip.Client('127.0.0.1:1', timeout=1) is not None)"
    assert run(programs / "python", "-c", code, cwd=folder) == "True\n"
    refused = subprocess.run(
        [programs / "samclip", "serve"], cwd=folder, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "pip install -e '.[serve]'" in refused.stderr


def test_an_application_imports_its_own_packages(install: Install) -> None:
    programs = install(VERSIONS[0], "[core]")
    code = f"import services, training; print(services.{MARK}, training.{MARK})"
    assert run(programs / "python", "-c", code, cwd=programs.parent) == "services training\n"
    code = "import sys, samclip, samclip_core; print({'services', 'training'} & sys.modules.keys())"
    assert run(programs / "python", "-c", code, cwd=programs.parent) == "set()\n"
    assert '"kind": "edge"' in run(programs / "samclip", "info", "--json", cwd=programs.parent)
    ask = (programs / "samclip", "segment", PHOTOGRAPH, "--point", "200", "60", "--json", "--local")
    assert '"predicted_iou"' in run(*ask, cwd=programs.parent)  # without Ray


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_editable_clone_is_imported_in_the_folder_that_holds_it(
    version: str, installer: str, tmp_path: Path
) -> None:
    files = run("git", "ls-files", *FOLDERS, "pyproject.toml", "README.md", "LICENSE", cwd=ROOT)
    for file in files.splitlines():
        (tmp_path / "samclip" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "samclip" / file).symlink_to(ROOT / file)
    run(interpreter(version), "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    command = [python, "-m", "pip", "install", "--quiet"]
    if installer == "uv":
        run(*command, "uv", cwd=tmp_path)
        command = [python, "-m", "uv", *command[2:], "--python", python]
    run(*command, "--editable", "./samclip", cwd=tmp_path)
    code = "import samclip, samclip_core; print(samclip.Client.__name__, samclip_core.__file__)"
    assert run(python, "-c", code, cwd=tmp_path).startswith(f"Client {tmp_path}/samclip/")
    assert "classify" in run(python, "-m", "samclip.cli", "--help", cwd=tmp_path)
    assert "classify" in run(python.with_name("samclip"), "--help", cwd=tmp_path)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_service_and_heads_of_ones_own_run_from_the_wheel(
    version: str, install: Install, tmp_path: Path
) -> None:
    programs = install(version, "[serve,probe]")
    settings = {"COMPILED_CACHE_DIR": tmp_path / "compiled", "root": tmp_path / "none"}
    for name, colour in product(("red", "blue"), range(200, 250, 10)):
        (tmp_path / "colours" / name).mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (64, 48), (colour, 0, 0) if name == "red" else (0, 0, colour))
        picture.save(tmp_path / f"colours/{name}/{colour}.png")
    shutil.copy(own_heads.__file__, tmp_path / "upper.py")
    fit = (programs / "samclip", "probe", "fit", "colours", "--out", "taught", "--local")
    run(*fit, cwd=tmp_path)
    heads = "upper.py:Parts,taught"
    service = start(tmp_path, "edge", str(programs / "python"), HEADS=heads, **settings)

    def ask(*words: object) -> Any:
        command = programs / "samclip", *words, "--json", "--server", service.address
        return json.loads(run(*command, cwd=tmp_path))

    try:
        reply = ask("classify", PHOTOGRAPH, "--labels", "a cat", "a dog")
        taught = ask("ask", "taught", "colours/red/200.png")
        parts = ask("ask", "parts", PHOTOGRAPH)
    finally:
        service.stop()
    assert "a cat" in json.dumps(reply)
    assert reply["model"]["name"] == "edge"
    assert '"class": "red"' in json.dumps(taught)
    assert '"upper"' in json.dumps(parts)
