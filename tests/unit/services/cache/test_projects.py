"""``samclip cache warm`` for projects of Label Studio and CVAT, against stand-ins for their APIs.

Label Studio 1.20 answers ``GET /api/projects/N/`` and ``/api/tasks/?project=N&page=…`` in these
shapes, and CVAT 2.57 ``/api/tasks?project_id=N``, ``/api/tasks/N/data/meta`` and
``/api/tasks/N/data?type=frame``.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from samclip import cli
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import image_key
from services.cache import projects
from services.cache.projects import Cvat, LabelStudio, Project
from tests.fake_server import FakeService, fake_server
from tests.http_server import Handler, serving
from tests.in_process import png

Server = tuple[FakeService, str]
CONFIG = '<View><Image name="photo" value="$image"/><BrushLabels name="b" toName="photo"/></View>'
LEGACY = "0123456789abcdef" * 2 + "01234567"
PERSONAL = "head.body.signature"
ACCESS = "access.of.minutes"


@pytest.fixture
def server() -> Iterator[Server]:
    with fake_server() as running:
        yield running


class Tool(Handler):
    """The common part of both: the token, pages and files."""

    pages: dict[str, Any]  # by path, or by path and page
    files: dict[str, bytes]
    token = f"Token {LEGACY}"
    asked: list[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append(self.path)
        if self.headers["authorization"] != self.token:
            self.answer(status=401)
        elif self.path in self.files:
            self.answer(self.files[self.path])
        elif (page := self.pages.get(f"{url.path} {query.get('page', '')}".strip())) is not None:
            self.answer(json.dumps(page).encode())
        else:
            self.answer(status=404)

    def do_POST(self) -> None:
        known = (
            self.path == "/api/token/refresh/" and json.loads(self.body())["refresh"] == PERSONAL
        )
        self.answer(json.dumps({"access": ACCESS}).encode(), 200 if known else 401)


@contextmanager
def tool(pages: dict[str, Any], files: dict[str, bytes], **more: Any) -> Iterator[tuple[str, Any]]:
    made = type("Made", (Tool,), {"pages": pages, "files": files, "asked": [], **more})
    with serving(made) as address:
        yield address, made


def label_studio(*addresses: str) -> dict[str, Any]:
    """Return the pages of project 3, whose tasks have these images: 100 a page."""
    tasks = [{"id": n, "data": {"image": one, "other": 7}} for n, one in enumerate(addresses)]
    about = {"total": len(tasks), "total_annotations": 0, "total_predictions": 0}
    pages = range(1, 2 + len(tasks) // 100)
    return {"/api/projects/3/": {"id": 3, "label_config": CONFIG}} | {
        f"/api/tasks/ {page}": {**about, "tasks": tasks[100 * page - 100 : 100 * page]}
        for page in pages
    }


def run(server: Server, tmp_path: Path, *more: str, token: str = LEGACY) -> int:
    (tmp_path / "token").write_text(f"{token}\n")
    given = "--server", server[1], "--token-file", str(tmp_path / "token")
    return cli.main(["cache", "warm", *more, *given])


STORED = {f"/data/upload/3/{n}.png": png(n) for n in range(103)}


@pytest.mark.parametrize("token", [LEGACY, PERSONAL])
def test_a_project_of_label_studio_is_embedded_for_masks(server, tmp_path, capsys, token):
    header = f"Token {LEGACY}" if token == LEGACY else f"Bearer {ACCESS}"
    with tool(label_studio(*STORED), STORED, token=header) as (address, made):
        shown = f"{address}/projects/3/data?tab=1"
        assert run(server, tmp_path, "--label-studio", shown, token=token) == 0
        assert capsys.readouterr().out == "103 embedded, 0 failed\n"
        assert sorted(server[0].uploads) == sorted(map(image_key, STORED.values()))
        requests = [one for one, _ in server[0].calls if isinstance(one, pb.EmbedRequest)]
        assert {(*one.outputs, one.inline) for one in requests} == {(False,)}  # all outputs
        assert run(server, tmp_path, "--label-studio", shown, token=token) == 0
        assert len(server[0].uploads) == 103  # a repeated run sends nothing again
    assert not [path for path in made.asked if "refresh" in path]


def test_images_that_label_studio_does_not_store_are_named(server, tmp_path, capsys):
    uri = f"data:image/png;base64,{base64.b64encode(png(200)).decode()}"
    elsewhere = "http://other/data/a.png", "/api/users", "/data/../api/users", "s3://b/a.png"
    pages = label_studio("/data/upload/3/1.png", uri, "/data/absent.png", *elsewhere)
    with tool(pages, STORED) as (address, made):
        assert run(server, tmp_path, "--label-studio", f"{address}/projects/3") == 1
    out, err = capsys.readouterr()
    assert out == "2 embedded, 5 failed\n"
    assert sorted(server[0].uploads) == sorted([image_key(png(1)), image_key(png(200))])
    assert "2: http" in err
    assert "answers 404" in err
    for number, source in enumerate(elsewhere, 3):
        assert f"{number}: {source} is not stored in Label Studio" in err
    files = {path for path in made.asked if not path.startswith("/api/")}
    assert files == {"/data/upload/3/1.png", "/data/absent.png"}


def test_several_images_of_a_task_are_kept_apart(server, tmp_path, capsys):
    config = '<View><Image value="$a"/><Image value="$b"/><Image value="$a"/></View>'
    stored = {f"/data/local-files/?d={n}.png": png(n) for n in range(2)}
    tasks = [
        {"id": 5, "data": dict(zip("ab", stored, strict=True))},
        {"id": 6, "data": {"a": "s3://b/a.png", "b": "s3://b/b.png"}},
    ]
    pages = {"/api/projects/3/": {"label_config": config}}
    pages["/api/tasks/ 1"] = {"total": 2, "tasks": tasks}
    with tool(pages, stored) as (address, _):
        given = "--label-studio", f"{address}/projects/3", "--collection", "pets"
        assert run(server, tmp_path, *given) == 1
    held = {id: item.image.encoded for id, item in server[0].collections["pets"].items()}
    assert held == {"5/local-files": png(0), "5/1/local-files": png(1)}
    assert capsys.readouterr().out == "2 embedded, 2 failed\n"


def test_pages_may_be_shorter_than_asked_for_or_end_early():
    few = label_studio(*STORED)
    tasks = few["/api/tasks/ 1"]["tasks"] + few["/api/tasks/ 2"]["tasks"]
    for page, start in enumerate(range(0, 103, 30), 1):
        few[f"/api/tasks/ {page}"] = {"total": 103, "tasks": tasks[start : start + 30]}
    with tool(few, {}) as (address, _):
        project = LabelStudio.of(f"{address}/projects/3", LEGACY)
        assert sum(map(len, project.parts())) == 103
    few["/api/tasks/ 5"] = {"total": 2**40, "tasks": []}
    few["/api/tasks/ 4"]["total"] = 2**40
    with tool(few, {}) as (address, made):
        assert sum(map(len, LabelStudio.of(f"{address}/projects/3", LEGACY).parts())) == 103
        assert len(made.asked) == 6


def test_a_project_is_indexed_and_a_second_run_resumes(server, tmp_path, capsys):
    with tool(label_studio(*STORED), STORED) as (address, _):
        given = "--label-studio", f"{address}/projects/3", "--collection", "pets"
        assert run(server, tmp_path, *given) == 0
        held = server[0].collections["pets"]
        assert held["7/7.png"].image.encoded == png(7)
        del held["7/7.png"]
        assert run(server, tmp_path, *given) == 0
    assert len(held) == 103
    assert capsys.readouterr().out.endswith("1 embedded, 0 failed\n")


def frames(task: int, size: int) -> dict[str, bytes]:
    address = f"/api/tasks/{task}/data?type=frame&quality=original&number="
    return {f"{address}{frame}": png(10 * task + frame) for frame in range(size)}


META = {
    "/api/tasks/7/data/meta": {"size": 3, "deleted_frames": [1], "frames": []},
    "/api/tasks/8/data/meta": {"size": 2, "frames": []},
}
FRAMES = frames(7, 3) | frames(8, 2)


@pytest.mark.parametrize("token", [LEGACY, "a-personal-token"])
def test_a_task_of_cvat_is_embedded_without_its_deleted_frames(server, tmp_path, capsys, token):
    header = f"Token {LEGACY}" if token == LEGACY else f"Bearer {token}"
    with tool(META, FRAMES, token=header) as (address, _):
        shown = f"{address}/tasks/7/jobs/9"
        assert run(server, tmp_path, "--cvat", shown, token=token) == 0
    assert capsys.readouterr().out == "2 embedded, 0 failed\n"
    assert sorted(server[0].uploads) == sorted([image_key(png(70)), image_key(png(72))])


def test_a_project_of_cvat_has_the_frames_of_all_tasks(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(projects, "PAGE", 2)
    pages = {
        "/api/tasks 1": {"count": 2, "next": "…", "results": [{"id": 7}]},
        "/api/tasks 2": {"count": 2, "next": None, "results": [{"id": 8}, {"id": 9}]},
        "/api/tasks/9/data/meta": {"size": 1, "frames": []},
    }
    with tool(META | pages, FRAMES) as (address, made):
        assert run(server, tmp_path, "--cvat", f"{address}/projects/3", "--regions") == 1
        assert any("project_id=3&page=2" in path for path in made.asked)
    out, err = capsys.readouterr()
    assert out == "4 embedded, 1 failed\n"
    assert re.search(r"9/0: .*answers 404", err)


def test_a_task_of_many_frames_is_split_into_parts(monkeypatch):
    meta = {"/api/tasks/7/data/meta": {"size": 250, "deleted_frames": [0], "frames": []}}
    with tool(meta, {}) as (address, _):
        parts = [*Cvat.of(f"{address}/tasks/7", LEGACY).parts()]
    assert [len(part) for part in parts] == [99, 100, 50]
    assert parts[2][-1] == "7/249"


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")  # Ray Data's defaults
@pytest.mark.usefixtures("small_ray")
def test_workers_share_a_project(server, tmp_path, capsys):
    with tool(label_studio(*STORED), STORED) as (address, _):
        given = "--label-studio", f"{address}/projects/3", "--workers", "2"
        assert run(server, tmp_path, *given) == 0
    assert capsys.readouterr().out == "103 embedded, 0 failed\n"


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({}, "answers 404: check address and token"),
        ({"/api/projects/3/": {"id": 3}}, "answers in another form than expected: KeyError"),
        ({"/api/projects/3/": {"label_config": "<View>"}}, "in another form"),
        (label_studio() | {"/api/tasks/ 1": []}, "in another form"),
        (label_studio(), "no images in http"),
    ],
)
def test_a_project_that_cannot_be_listed_is_an_error(server, tmp_path, capsys, pages, words):
    with tool(pages, {}) as (address, _):
        assert run(server, tmp_path, "--label-studio", f"{address}/projects/3") == 1
    assert words in capsys.readouterr().err


def test_a_refused_token_and_a_page_of_html_are_errors(server, tmp_path, capsys):
    with tool({}, {"/api/tasks/7/data/meta": b"<html>"}) as (address, _):
        for token, words in (
            ("wrong", "answers 401"),
            (PERSONAL, "answers 401"),
            (LEGACY, "no JSON"),
        ):
            assert run(server, tmp_path, "--cvat", f"{address}/tasks/7", token=token) == 1
            assert words in capsys.readouterr().err
    assert run(server, tmp_path, "--cvat", f"{address}/tasks/7") == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_token_that_cannot_be_renewed_fails_the_file_alone(server, tmp_path, capsys):
    def refresh(tool: Any) -> None:
        tool.body()
        tool.answer(b"{}")

    pages = label_studio("/data/1.png")
    with tool(pages, STORED, token=f"Bearer {PERSONAL}", do_POST=refresh) as (address, made):
        project = LabelStudio.of(f"{address}/projects/3", PERSONAL)
        ((name,),) = project.parts()
        made.token = "expired"
        broken: dict[str, str] = {}
        assert [*project.pictures([name], broken)] == []
    assert "in another form than expected: KeyError('access')" in broken["0"]


@pytest.mark.parametrize("token", ["secret\nsecond line", "", "s\xe9cret"])
def test_a_file_that_holds_no_token_is_named_and_not_shown(server, tmp_path, capsys, token):
    assert run(server, tmp_path, "--cvat", "http://127.0.0.1:1/tasks/7", token=token) == 1
    said = capsys.readouterr().err
    assert "token holds no token" in said
    assert "secret" not in said


def test_large_files_are_not_read_to_their_end(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(projects, "MAX_FILE_BYTES", 1000)
    with tool(META, FRAMES | {next(iter(FRAMES)): bytes(1001)}) as (address, _):
        assert run(server, tmp_path, "--cvat", f"{address}/tasks/7") == 1
    assert capsys.readouterr().out == "0 embedded, 2 failed\n"


@pytest.mark.parametrize(
    "shown", ["127.0.0.1:8080", "http://x/", "http://x/projects/a", "x/tasks/7"]
)
def test_an_address_that_no_browser_shows_is_refused(shown):
    with pytest.raises(ValueError, match="copy it from the browser"):
        Project.of(shown, LEGACY)


def test_a_token_file_is_needed_and_the_token_is_not_shown(tmp_path, capsys):
    assert cli.main(["cache", "warm", "--cvat", "http://x/tasks/7"]) == 1
    assert "--token-file" in capsys.readouterr().err
    project = LabelStudio.of("https://x.org/ls/projects/3", LEGACY)
    assert str(project) == "https://x.org/ls/projects/3"
    assert LEGACY not in repr(project)
