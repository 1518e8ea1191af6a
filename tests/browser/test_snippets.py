"""What the playground copies runs as it is, and gives the playground's answer."""

import ast
import email
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from samclip.cli import commands, usage

from tests.browser.conftest import PANELS, User
from tests.checkout import ROOT, sources
from tests.http_server import Handler, serving

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
        expect(user.objects()).to_have_count(1)
        user.page.get_by_text("Remove", exact=True).first.click()
        user.point(0.95, 0.05)
        expect(user.page.locator("#choices")).to_be_hidden()
        return ""
    if what == "find":
        user.find("a cat")
        expect(user.objects().first).to_contain_text("a cat")
    else:
        user.turn_to(PANELS[what])
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


def test_a_copied_request_has_the_outline_that_was_drawn(desktop: User, shell: Path) -> None:
    page = desktop.page
    desktop.open_sample()
    page.keyboard.press("d")
    stage = page.locator("#stage").bounding_box()
    assert stage
    for step, (x, y) in enumerate([(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]):
        left, top = desktop.place(x, y)
        page.mouse.move(stage["x"] + left, stage["y"] + top, steps=5)
        if not step:
            page.mouse.down()
    page.mouse.up()
    desktop.says("of the photograph")
    desktop.turn_to("Objects")
    for kind in ("Python", "CLI"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        file = download.value.suggested_filename
        download.value.save_as(shell / file)
        desktop.says(f"The outline that it reads is saved as {file}.")
        text = page.locator("#copied").inner_text()
        assert text.count(file) == 1
        run(shell, kind, text)
    page.get_by_role("button", name="grpcurl", exact=True).click()
    assert json.loads(run(shell, "grpcurl", page.locator("#copied").inner_text()))["results"]


def test_a_copied_request_has_the_object_that_it_is_about(desktop: User, shell: Path) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.add_to("parts")
    desktop.segment()
    files = set[str]()
    for button in ("classify-object", "similar-object", "alike"):
        desktop.ask(button) if button in PANELS else page.click(f"#{button}")
        desktop.says("is most likely" if button == "classify-object" else "found")
        expect(page.locator("[data-copy=cli]")).to_be_disabled()
        with page.expect_download() as download:
            page.get_by_role("button", name="Python", exact=True).click()
        file = download.value.suggested_filename
        files.add(file)
        download.value.save_as(shell / file)
        program = page.locator("#copied").inner_text()
        assert program.count(file) == 1
        run(shell, "Python", program)
        page.get_by_role("button", name="grpcurl", exact=True).click()
        assert json.loads(run(shell, "grpcurl", page.locator("#copied").inner_text()))
    assert len(files) == 1


@pytest.mark.parametrize("like", [False, True], ids=["words", "photograph"])
def test_a_copied_search_is_the_one_on_the_screen(desktop: User, shell: Path, like: bool) -> None:
    page = desktop.page
    desktop.open_sample()
    desktop.add_to(f"copied-{like}")
    page.fill("#query", 'someone\'s "cat"')
    page.click("#similar") if like else page.press("#query", "Enter")
    desktop.says("1 found")
    desktop.ask("classify")
    expect(page.locator("#answers li").first).to_be_visible()
    desktop.turn_to("Collections")
    for kind in ("curl", "Python", "CLI", "grpcurl"):
        if kind == "curl" and not shutil.which("curl"):
            continue
        page.get_by_role("button", name=kind, exact=True).click()
        text = page.locator("#copied").inner_text()
        assert ("chelsea.jpg" in text) is like, text
        assert "chelsea.jpg" in run(shell, kind, text), (kind, text)


NAME = '-it\'s; a "$(name)", \\ <true>.jpg'
TEXTS = ["@/etc/hostname", "<", "true; type=x", "it's $(text) \"\\", "-- `a`"]
SNIPPETS = (ROOT / "services/gateway/playground/snippets.js").read_text()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    found = browser.new_page()
    yield found
    found.close()


def copied(page: Page, kind: str, path: str, fields: dict[str, Any], origin: str = "") -> str:
    """Return the text for a request, with a photograph and texts of awkward names."""
    text: str = page.evaluate(
        """async ([source, kind, request, service]) =>
        (await import("data:text/javascript," + encodeURIComponent(source)))[kind](request, service)
        """,
        [
            SNIPPETS,
            kind,
            {"path": path, "fields": fields, "name": NAME},
            {"origin": origin, "grpc": "localhost:1"},
        ],
    )
    return text


class Recorder(Handler):
    """Answers with the parts of a form as JSON: the file name, and the texts by field."""

    def do_POST(self) -> None:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = [
            [part.get_content_type(), part.get_payload(decode=True).decode().strip()]
            for part in email.message_from_bytes(head + self.body()).get_payload()
        ]
        self.answer(json.dumps(parts).encode())


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_texts_and_file_names_mean_nothing_to_curl(page: Page, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("pixels")
    with serving(Recorder) as origin:
        text = copied(page, "curl", "/classify", {"labels": TEXTS}, origin)
        done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [content for _, content in json.loads(done.stdout)] == ["pixels", *TEXTS]


@pytest.mark.parametrize("fields", [{}, {"labels": TEXTS}], ids=["nothing", "texts"])
def test_texts_and_file_names_mean_nothing_to_a_shell(
    page: Page, tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / NAME).write_text("pixels")
    (tmp_path / "grpcurl").write_text("#!/bin/sh\nexec cat\n")
    (tmp_path / "grpcurl").chmod(0o755)
    text = copied(page, "grpcurl", "/everything", fields)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=path, capture_output=True)
    assert json.loads(done.stdout) == {"image": {"encoded": "cGl4ZWxz"}, **fields}


def test_each_outline_has_a_file_of_its_own(page: Page) -> None:
    """Else the browser renames the second one, and the program reads the first."""
    files = list[Any]()
    for counts in ("abc", "abd"):
        for kind in ("client", "cli"):
            fields = {"prompts": [{"mask": {"height": 9, "width": 9, "counts": counts}}]}
            found = re.search(r"outline-\w+\.png", copied(page, kind, "/segment", fields))
            files.append(found and found[0])
    assert files[0] == files[1] != files[2] == files[3]
    assert None not in files


def test_texts_and_file_names_are_those_of_the_program_and_the_command(page: Page) -> None:
    fields = {"prompts": [{"text": text, "not_texts": ["false"]} for text in TEXTS]}
    tree = ast.parse(copied(page, "client", "/segment", fields))
    given = {
        k.arg: ast.literal_eval(k.value) for n in ast.walk(tree) for k in getattr(n, "keywords", ())
    }
    assert given == {"text": TEXTS, "not_texts": ["false"]}
    assert NAME in {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    words = shlex.split(copied(page, "cli", "/segment", fields))
    parsed = commands.parser().parse_args(words[1:])
    assert (parsed.text, set(parsed.not_texts), parsed.images) == (TEXTS, {"false"}, [NAME])
    for labels in (["-dash", "a, b", *TEXTS], ["a, b"], ['"a", b,'], ['"a"'], ["it's"]):
        words = shlex.split(copied(page, "cli", "/classify", {"labels": labels}))
        assert usage.split(commands.parser().parse_args(words[1:]).labels) == labels
