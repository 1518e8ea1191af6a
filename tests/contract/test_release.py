"""What a release consists of agrees: versions, changelog, citation, workflow, checklist."""

import re
import subprocess
import tomllib
from typing import Any

import samclip
import yaml

from tests.checkout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = "Programming Language :: Python :: "


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_runs_the_checks_on_every_python_that_the_package_names() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    named = [each.removeprefix(PYTHON) for each in PROJECT["classifiers"] if PYTHON in each]
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["core"], *extras["serve"]]
    assert not any("python_version" in requirement for requirement in needed)
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1] == "bash .ci/run"


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == samclip.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_changelog_begins_with_this_version_and_has_each_topic_once() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall("^## (.*)$", text, re.MULTILINE)
    assert versions[0].startswith(f"[{samclip.__version__}] - ")
    for version in versions:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|unreleased)", version)
    for section in text.split("\n## ")[1:]:
        topics = re.findall("^### (.*)$", section, re.MULTILINE)
        assert len(set(topics)) == len(topics)


def test_every_cell_about_another_project_has_its_source() -> None:
    text = (ROOT / "docs/comparison.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    unsourced = {"not documented", "with a model that you bring", "with code that you write"}
    assert len(rows) > 10
    for header, *cells in rows[1:]:
        others = [cell for cell in cells[1:] if cell not in unsourced]
        assert len(cells) == 7, header
        assert [cell for cell in others if "](https://" not in cell] == [], header


def test_the_targets_of_ci_and_of_the_checklist_exist() -> None:
    text = (ROOT / "docs/releases.md").read_text()
    named = {word for found in re.findall(r"`make ([a-z0-9 ]+)", text) for word in found.split()}
    script = (ROOT / ".ci/run").read_text()
    checked = {*re.findall(r"\bmake ([a-z0-9]+)", script)}
    paths = " ".join(re.findall(r"\btests/[\w/{},.:]+", script))
    words = subprocess.run(["bash", "-c", f"echo {paths}"], capture_output=True, text=True).stdout
    assert [word for word in words.split() if not (ROOT / word.split("::")[0]).exists()] == []
    targets = re.findall(r"^([a-z0-9]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named | checked <= set(targets)
    assert {"lint", "test", "package", "browser", "image", "clients", "site"} <= checked
    (nightly,) = read(".github/workflows/nightly.yml")["jobs"].values()
    assert [step["run"] for step in nightly["steps"][-2:]] == [
        "make avx2",
        "make image ARGS='-m image'",
    ]
    assert {"dist", "sbom", "package", "avx2", "faults"} <= named
