"""Fixtures of the command line's tests: a photograph, and a command that asks about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from samclip import cli

from tests.unit.client.conftest import Captured, Server
from tests.unit.client.picture import HEIGHT, WIDTH


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photos" / "grey.png"
    path.parent.mkdir()
    Image.new("L", (WIDTH, HEIGHT), 99).save(path)
    return str(path)


class Ran(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(server: Server, capsys: Captured) -> Run:
    """Return a function that runs a command, which asks the service."""
    return lambda *argv: Ran(cli.main([*argv, "--server", server[1]]), *capsys.readouterr())


@pytest.fixture
def ask(run: Run) -> Any:
    """Return a function that runs a command with --json and returns its output."""

    def answer(*argv: str) -> Any:
        ran = run(*argv, "--json")
        assert ran.status == 0
        return json.loads(ran.out)

    return answer
