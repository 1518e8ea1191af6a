"""Fixtures of the command line's tests: a photograph, and a command that asks about it."""

import json
from pathlib import Path
from typing import Any

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


@pytest.fixture
def ask(server: Server, capsys: Captured) -> Any:
    """Return a function that runs a command with --json and returns its output."""

    def run(*argv: str) -> Any:
        assert cli.main([*argv, "--json", "--server", server[1]]) == 0
        return json.loads(capsys.readouterr().out)

    return run
