"""Every message in docs/troubleshooting.md is one that the code can print."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.checkout import ROOT

TITLES = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
FOLDERS = ("client/samclip", "samclip_core", "services", "training")


def texts(node: ast.AST) -> Iterator[str]:
    """Yield each string in a program, with … for what is filled in."""
    for found in ast.walk(node):
        if isinstance(found, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in found.values]
            yield "".join(map(str, parts))
        elif isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield re.sub(r"\{\w*\}|%s", "…", found.value)


@pytest.fixture(scope="module")
def messages() -> str:
    modules = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    strings = [text for path in modules for text in texts(ast.parse(path.read_text()))]
    return "\n".join([*strings, (ROOT / "services/front_door/haproxy.cfg").read_text()])


@pytest.mark.parametrize("title", TITLES)
def test_the_code_has_this_message(title: str, messages: str) -> None:
    assert title in messages


def test_there_are_at_least_twenty() -> None:
    assert len(set(TITLES)) == len(TITLES) >= 20
