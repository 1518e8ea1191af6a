"""Installed packages include the data files beside their code."""

import re
import tomllib

import pytest
from samclip.cli.parts import PARTS

from tests.checkout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DATA = PROJECT["tool"]["setuptools"]["package-data"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
FOLDERS = {"samclip": "client/samclip"} | {
    name: name for name in ("samclip_core", "services", "training")
}


@pytest.mark.parametrize("name", FOLDERS)
def test_files_beside_the_code_are_installed(name: str) -> None:
    folder = ROOT / FOLDERS[name]
    packaged = {
        path
        for package, patterns in PACKAGE_DATA.items()
        if package.split(".")[0] == name
        for pattern in patterns
        for path in folder.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    beside = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}}
    assert beside <= packaged, f"package-data in pyproject.toml lacks {beside - packaged}"


TEXTS = [
    path
    for folder in ("client", "samclip_core", "services", "training", "docs", "deploy", "examples")
    for path in sorted((ROOT / folder).rglob("*.*"))
    if path.suffix in {".py", ".md", ".ipynb", ".yaml"}
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
HINT = re.compile(r"install (?:-e|--editable) '\.\[([\w,]+)\]'")


def test_no_hint_installs_a_package_of_this_name() -> None:
    """The index has none: what works is a path, in a clone."""
    named = re.compile(r"\binstall (?:-\S+ )*['\"`]?samclip(?! deploy/)\b|needs samclip\[")
    assert [path for path in TEXTS if named.search(path.read_text())] == []


def test_every_hint_names_an_extra_that_there_is() -> None:
    named = {
        name
        for path in TEXTS
        for found in HINT.findall(path.read_text())
        for name in found.split(",")
    }
    assert {"serve", "core", "export", "gpu", "hub", "train"} <= named <= EXTRAS.keys()
    assert {part.extra for part in PARTS.values()} <= EXTRAS.keys()
