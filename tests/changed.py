"""The tests that a change can concern: ``make test ARGS=--changed``.

A test concerns the modules that its file and its fixtures import, themselves or by others, and the
files that these name, or whose folder they name.
"""

import ast
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from tests.checkout import ROOT
from tests.import_graph import MODULES, TESTS, bound, reached

EVERYTHING = {"pyproject.toml", "tests/conftest.py"}
EVERY = MODULES | TESTS
NAMES = {path.relative_to(ROOT).as_posix(): name for name, path in EVERY.items()}
ALL = ("sys.executable", ".rglob(", "tests.import_graph")
"""Words of tests that start Python, or read all modules."""
SHARED = TESTS["tests.conftest"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--changed",
        nargs="?",
        const="main",
        metavar="BRANCH",
        help="run the tests that may concern what has changed since the branch left BRANCH (main)",
    )


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that what has changed does not concern."""
    if not (branch := config.getoption("changed")):
        return
    change = Change(files_since(branch))
    kept = [item for item in items if change.concerns(item.path, item.fixturenames)]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def files_since(branch: str, root: Path = ROOT) -> set[str]:
    """Return what has changed since HEAD left a branch, and what is not committed."""

    def git(*arguments: str) -> list[str]:
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if run.returncode:
            raise pytest.UsageError(f"--changed: git {arguments[0]} failed: {run.stderr.strip()}")
        return run.stdout.strip("\0\n").split("\0")

    (start,) = git("merge-base", "HEAD", branch)
    changed = git("diff", "--name-only", "--no-renames", "-z", start)
    return {*changed, *git("ls-files", "--others", "--exclude-standard", "-z")} - {""}


class Change:
    """Some files, by their paths from the root, of which some may exist no more."""

    def __init__(self, files: set[str]) -> None:
        self.everything = not EVERYTHING.isdisjoint(files)
        python = {file for file in files if file.endswith(".py")}
        self.modules = {NAMES.get(file) or _module(file) for file in python}
        self.named = [PurePosixPath(file) for file in files - python]

    def concerns(self, test: Path, fixtures: Iterable[str]) -> bool:
        """Return whether a test file's tests with these fixtures may depend on them."""
        own = {f"tests.{_dotted(test)}", *_conftests(test)}
        own |= set[str]().union(*(_of_fixtures().get(name, ()) for name in fixtures))
        return self.everything or self._concern(frozenset(own))

    @cache  # noqa: B019 - it lives as long as the collection
    def _concern(self, own: frozenset[str]) -> bool:
        helpers = reached(own, TESTS)
        texts = [_text(name) for name in helpers & TESTS.keys()]
        if self.modules & MODULES.keys() and any(mark in text for mark in ALL for text in texts):
            return True
        found = reached(own, EVERY)
        return not found.isdisjoint(self.modules) or any(map(self._names, found & EVERY.keys()))

    def _names(self, module: str) -> bool:
        """Return whether a module names one of the files; those of no package are the tests'."""
        text, package = _text(module), module.partition(".")[0]
        return any(
            file.name in text or (file.parent.name and f'"{file.parent.name}"' in text)
            for file in self.named
            if package == "tests" or package in file.parts
        )


def _module(file: str) -> str:
    return file.removeprefix("client/").removesuffix(".py").replace("/", ".")


def _dotted(test: Path) -> str:
    return ".".join(test.relative_to(ROOT / "tests").with_suffix("").parts)


def _conftests(test: Path) -> set[str]:
    """Return the conftests that are nearer to a test than the one that all share."""
    folders = [folder for folder in test.parents if folder.is_relative_to(ROOT / "tests")]
    names = {f"tests.{_dotted(folder / 'conftest.py')}" for folder in folders[:-1]}
    return names & TESTS.keys()


@cache
def _text(module: str) -> str:
    return EVERY[module].read_text()


@cache
def _of_fixtures() -> dict[str, set[str]]:
    """Return what each function of the shared conftest uses of the modules that it imports."""
    functions, modules_of = list[ast.FunctionDef | ast.AsyncFunctionDef](), dict[str, set[str]]()
    for node in ast.parse(SHARED.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(node)
        for name, module in bound(node):
            modules_of.setdefault(name, set()).add(module)
    return {
        node.name: set[str]().union(
            *(modules_of.get(each.id, ()) for each in ast.walk(node) if isinstance(each, ast.Name))
        )
        for node in functions
    }
