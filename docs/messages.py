"""The page of error messages, from the calls that make errors in the code."""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator

from samclip_core import errors
from services.request.status import TABLE, Status
from tests.checkout import ROOT

FOLDERS = ("client/samclip", "samclip_core", "services", "training")
STATUSES = {kind.__name__: status for kind, status in TABLE.items()}
TREE = {name for name, kind in vars(errors).items() if inspect.isclass(kind)}
WORD = re.compile(r"[A-Za-z]{2,}")
EXPLAINED = ROOT / "docs/troubleshooting.md"


def page() -> str:
    """Return every message that docs/troubleshooting.md does not explain, each with a heading."""
    explained = re.findall(r"^### `(.*)`$", EXPLAINED.read_text(), re.MULTILINE)
    sections = [
        "---\nhide: [toc]\n---\n# Error messages\n\nEvery message says what happened, what was"
        " expected and what to do; `…` stands for names and numbers. The commonest are explained"
        " in [Troubleshooting](../docs/troubleshooting.md), and not repeated here."
    ]
    for kind, found in sorted(messages().items()):
        new = sorted(text for text in found if not any(title in text for title in explained))
        if new:
            sections.append(f"## {kind}{_status(STATUSES.get(kind))}")
            sections += [f"### `{text}`" for text in new]
    return "\n\n".join(sections) + "\n"


def _status(status: Status | None) -> str:
    return f": {status.title}\n\nHTTP {status.http}, gRPC {status.code.name}." if status else ""


def messages() -> dict[str, set[str]]:
    """Return the texts with which errors are made, by the class of the error."""
    found = defaultdict[str, set[str]](set)
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            for kind, text in _made(ast.parse(path.read_text())):
                found[kind].add(text)
    return found


def _made(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name(kind) | ast.Attribute(attr=kind), args=[text, *_]):
                shown = _text(text)
                if (kind in TREE or kind.endswith("Error")) and len(WORD.findall(shown)) > 2:
                    yield kind, shown


def _text(node: ast.expr) -> str:
    """Return a message as one line of Markdown code, with … in place of its values."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return " ".join(text.replace("`", "'").split())
