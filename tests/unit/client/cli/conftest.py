"""Fixtures of the command line's tests: a service with known answers, and a photograph."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from samclip import cli

from tests.fake_server import FakeService, fake_server

WIDTH, HEIGHT = 30, 20


@pytest.fixture
def server() -> Iterator[tuple[FakeService, str]]:
    with fake_server() as running:
        yield running


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photos" / "grey.png"
    path.parent.mkdir()
    Image.new("L", (WIDTH, HEIGHT), 99).save(path)
    return str(path)


@pytest.fixture
def ask(server: tuple[FakeService, str], capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command with --json and returns its output."""

    def run(*argv: str) -> Any:
        assert cli.main([*argv, "--json", "--server", server[1]]) == 0
        return json.loads(capsys.readouterr().out)

    return run
