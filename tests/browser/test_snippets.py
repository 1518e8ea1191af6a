"""What the playground copies runs as it is, and gives the playground's answer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import User
from tests.checkout import ROOT, sources

pytestmark = pytest.mark.browser
PROGRAMS = {
    "samclip": "-m samclip.cli",
    "grpcurl": "-m tests.e2e.grpcurl",
}


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """Return a folder with the sample and with the programs that the copied commands call."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    shutil.copy(ROOT / "services/gateway/playground/samples/chelsea.jpg", tmp_path)
    return tmp_path


def run(shell: Path, kind: str, text: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{shell / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{sources(ROOT)}:{ROOT}",
    }
    command = (
        [sys.executable, "-c", text]
        if kind == "Python"
        else ["bash", "-euo", "pipefail", "-c", text]
    )
    done = subprocess.run(
        command, cwd=shell, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(user: User, what: str) -> str:
    """Ask one question; return a text that its answer must hold."""
    user.open_sample()
    if what == "segment":
        user.point(0.4, 0.5)
        user.page.get_by_text("excludes").first.click()
        expect(user.objects()).to_have_count(1)
        user.point(0.95, 0.05)
        expect(user.page.locator("#choices")).to_be_hidden()
        return ""
    user.turn_to({"find": "Find", "classify": "Classify", "semantic": "Map"}[what])
    if what == "find":
        user.page.fill("#phrase", "a cat")
        user.page.locator("#find button").first.click()
        expect(user.objects().first).to_contain_text("a cat")
    else:
        user.page.fill("#labels", 'a cat\nsomeone\'s "dog"')
        user.page.click(f"#{what}")
        expect(user.page.locator("#answers li, #objects li").first).to_contain_text("a cat")
    return "a cat"


@pytest.mark.parametrize("what", ["segment", "find", "classify", "semantic"])
def test_a_copied_request_runs(desktop: User, shell: Path, what: str) -> None:
    expected = ask(desktop, what)
    for kind in ("curl", "Python", "CLI", "grpcurl"):
        if kind == "curl" and not shutil.which("curl"):
            continue
        desktop.page.get_by_role("button", name=kind, exact=True).click()
        text = desktop.page.locator("#copied").inner_text()
        answer = run(shell, kind, text)
        assert expected in answer, (kind, answer)
        if kind in ("curl", "grpcurl"):
            assert json.loads(answer)["image"]["width"] == 451 if what != "classify" else True
