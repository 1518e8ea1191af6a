"""Installed packages include the data files beside their code."""

import os
import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from samclip import cli
from samclip.cli.commands import PARTS

from tests.checkout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
FOLDERS = ("client/samclip", "samclip_core", "services", "training")


def test_an_editable_installation_is_a_path_entry_that_wins_over_the_current_folder() -> None:
    """A finder comes last: where a clone is called samclip, that folder would be imported.

    `make package` installs such a clone.
    """
    build = PROJECT["tool"]["hatch"]["build"]
    assert {*build["only-include"]} == {*FOLDERS}
    folders = [ROOT / name for name in build["targets"]["wheel"]["dev-mode-dirs"]]
    for package in ("samclip", "samclip_core", "services", "training"):
        assert [(folder / package / "__init__.py").exists() for folder in folders].count(True) == 1


@pytest.mark.parametrize(
    ("services", "added"),
    [("client/samclip/_bundled", True), (".", True), ("elsewhere", False)],
    ids=["installed", "in a clone", "the client alone"],
)
def test_the_command_imports_its_own_services_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: str, added: bool
) -> None:
    (tmp_path / services / "services/launch").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["/application"])
    monkeypatch.setenv("PYTHONPATH", "/application")
    cli.add_services(tmp_path / "client/samclip")
    expected = [str(tmp_path / services)] * added + ["/application"]
    assert sys.path == expected
    assert os.environ["PYTHONPATH"] == os.pathsep.join(expected)


def test_another_package_in_the_place_of_multipart_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """python-multipart before 0.0.13 installs one, and is imported instead."""
    monkeypatch.setitem(sys.modules, "multipart", ModuleType("multipart"))
    with pytest.raises(ImportError, match="pip install --upgrade python-multipart"):
        runpy.run_path(str(ROOT / "services/request/bodies.py"))


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
    assert {"serve", "export", "gpu", "hub", "train"} <= named <= EXTRAS.keys()
    assert {name for part in PARTS.values() for name in part.extra.split(",")} <= EXTRAS.keys()
