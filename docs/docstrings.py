"""Our docstrings as Markdown: examples become code, lines about arguments a list."""

import re
from typing import Any

from griffe import Extension, GriffeLoader, Module, Object

EXAMPLES = re.compile(r"^(>>> .*(?:\n.+)*)", re.MULTILINE)
ARGUMENTS = re.compile(r"(?:(?<=\n\n)|^)\w+(?:, \w+)*: .*(?:\n.+)*", re.MULTILINE)
NAME = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


class Docstrings(Extension):
    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        self.on_object(obj=pkg, loader=loader)

    def on_object(self, *, obj: Object, loader: GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown."""
    text = EXAMPLES.sub(r"```pycon\n\1\n```", docstring)
    return ARGUMENTS.sub(lambda found: NAME.sub(r"- `\1`: ", found[0]), text)
