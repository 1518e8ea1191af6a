"""Installed packages include the data files beside their code."""

import tomllib

import pytest

from tests.checkout import ROOT

PACKAGE_DATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
    "package-data"
]
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
