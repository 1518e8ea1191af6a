"""Which modules a module imports, read from the source."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.checkout import ROOT

FOLDERS = ("samclip_core", "services", "training")


def _modules(*folders: tuple[Path, str]) -> Mapping[str, Path]:
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for root, folder in folders
        for path in sorted((root / folder).rglob("*.py"))
    }


MODULES = _modules((ROOT / "client", "samclip"), *((ROOT, name) for name in FOLDERS))
"""Every module of the project by its dotted name."""
TESTS = _modules((ROOT, "tests"))


def bound(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names that imports anywhere in some code bind, each with the module.

    The project's own modules have their full names.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import of {node.module}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                own = name in MODULES or name in TESTS
                yield alias.asname or alias.name, name if own else str(node.module)


@cache
def imported(path: Path) -> set[str]:
    """Return the modules imported anywhere in a file."""
    return {module for _, module in bound(ast.parse(path.read_text()))}


def reached(names: Iterable[str], among: Mapping[str, Path]) -> set[str]:
    """Return these modules, and what they import of a set of modules, themselves or by others."""
    found, left = set[str](), list(names)
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += imported(among[name]) if name in among else ()
    return found
