"""Images from files, folders, globs, addresses and stdin."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from samclip import cli
from samclip.cli import answers

from tests.http_server import Handler, serving
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured, Server

CLASSIFY = ("--labels", "cat", "--format", "jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with three photographs and a note."""
    for shade, name in enumerate(("a.png", "b.PNG", "more/c.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("L", (6, 4), shade).save(path)
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def answered(run: Run, *given: str) -> list[str]:
    ran = run("classify", *given, *CLASSIFY)
    assert ran.status == 0
    return [json.loads(line)["image"] for line in ran.out.splitlines()]


def test_folders_and_globs_and_files(run: Run, folder: Path) -> None:
    all_ = [str(folder / name) for name in ("a.png", "b.PNG", "more/c.jpg")]
    assert answered(run, str(folder)) == all_
    assert answered(run, f"{folder}/**/*.[jp]*") == [all_[0], all_[2]]
    assert answered(run, all_[2], all_[0]) == [all_[2], all_[0]]


def test_what_is_no_photograph_of_a_folder_is_left_alone(run: Run, folder: Path) -> None:
    photos = answered(run, str(folder))
    (folder / "._a.png").write_bytes(b"what macOS writes beside a.png")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/a.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "album.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    assert answered(run, str(folder)) == photos


def test_files_of_a_folder_that_cannot_be_read_are_named(run: Run, folder: Path) -> None:
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "phone.HEIC").write_bytes(b"a photograph of a telephone")
    ran = run("classify", str(folder), *CLASSIFY)
    assert ran.status == 1
    assert f"{folder}/gone.png: No such file" in ran.err
    assert f"{folder}/phone.HEIC: not read: convert it to .jpeg" in ran.err


def test_a_photograph_keeps_its_output_name_beside_one_that_is_not_read(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    """YOLO's programs look for the labels of a.png in a.txt."""
    (folder / "a.heic").write_bytes(b"a photograph of a telephone")
    out = tmp_path / "out"
    argv = ["segment", str(folder), "--box", "1", "1", "3", "3", "--format", "yolo"]
    assert run(*argv, "--out", str(out)).status == 1
    labels = {path.relative_to(out).as_posix() for path in out.rglob("*.txt")}
    assert labels == {"labels/a.txt", "labels/b.txt", "labels/more/c.txt"}


def test_the_overlay_does_not_replace_its_photograph(run: Run, photo: str) -> None:
    before = Path(photo).read_bytes()
    beside = f"{Path(photo).parent}/../photos/{Path(photo).name}"
    for out in (photo, beside):
        ran = run("segment", photo, "--point", "3", "4", "--out", out)
        assert ran.status == 2
        assert "is the photograph itself: name another file" in ran.err
    assert Path(photo).read_bytes() == before


def test_an_address_is_fetched_here_and_its_file_sent(
    run: Run, server: Server, folder: Path
) -> None:
    class Site(Handler):
        def do_GET(self) -> None:
            self.answer((folder / self.path[1:]).read_bytes())

    with serving(Site) as website:
        url = f"{website}/more/c.jpg"
        assert answered(run, url) == [url]
        assert run("index", "web", url).status == 0
    assert (folder / "more/c.jpg").read_bytes() in server[0].files.values()
    ran = run("classify", url, *CLASSIFY)  # nobody answers any more
    assert (ran.status, f"samclip: {url}: " in ran.err) == (1, True)
    assert set(server[0].collections["web"]) == {"c.jpg"}


def test_stdin_and_stdout(
    server: Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO((folder / "a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    argv = ["segment", "-", "--box", "1", "1", "3", "3", "--out", "-", "--server", server[1]]
    assert cli.main(argv) == 0
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as overlay:
        assert overlay.size == (6, 4)
        assert overlay.getpixel((2, 2)) != overlay.getpixel((5, 3))


@pytest.mark.parametrize("name", ["overlay.png", "new/overlay.JPG"])
def test_the_overlay_alone_as_a_picture(run: Run, folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    ran = run("everything", str(folder / "a.png"), "--out", str(out))
    assert (ran.status, ran.out.splitlines()[-1]) == (0, str(out))
    with Image.open(out) as overlay:
        assert overlay.size == (6, 4)
    assert list(out.parent.glob("mask*")) == []


def test_a_search_by_an_image_from_stdin(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("index", "photos", str(folder))
    stdin = SimpleNamespace(buffer=io.BytesIO((folder / "a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    hits = ask("search", "photos", "--image", "-")["results"]
    assert {hit["id"] for hit in hits} == {"a.png", "b.PNG", "more/c.jpg"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["classify", "nothing/*.png", "--labels", "x"], "nothing/*.png: no file matches"),
        (["segment", "{folder}", "--point", "1", "1", "--out", "-"], "found 3: name a folder"),
        (["segment", "{folder}", "--point", "1", "1", "--out", "x.jpg"], "found 3: name a folder"),
        (["segment", "x.png", "--point", "1", "1", "--format", "yolo"], "with --out FOLDER"),
        (["everything", "x.png", "--format", "yolo", "--out", "x.png"], "writes a folder"),
        (["everything", "x.png", "--json", "--out", "-"], "prints a picture"),
        (["search", "pets", "--image", "{folder}"], "has 3 images: give one of them"),
        (["segment", "x.png"], "segment needs a prompt: --point X Y, --box"),
        (["segment", "x.png", "--like", "x.png"], "--like needs either --box or --point"),
        (["segment", "x.png", "--like", "no.png", "--point", "1", "1"], "no.png"),
        (["segment", "x.png", "--mask", "no.png"], "no.png"),
        (["segment", "{folder}", "--mask", "m.png"], "--mask marks an object in one image"),
        (["segment", "x.png", "--mask", "{folder}/a.png", "--like", "x.png"], "without --like"),
        (["embed"], "embed needs an IMAGE or --text TEXT"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is(
    argv: list[str], message: str, run: Run, server: Server, folder: Path
) -> None:
    ran = run(*(word.format(folder=folder) for word in argv))
    assert ran.status in (1, 2)
    assert message in ran.err
    assert not server[0].calls


def test_folders_give_each_image_a_folder_of_its_own(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    out = tmp_path / "out"
    ran = run("segment", str(folder), "--box", "1", "1", "3", "3", "--out", str(out))
    assert ran.status == 0
    written = {str(path.relative_to(out)) for path in out.rglob("*.png") if path.is_file()}
    names = ("a.jpg", "a.png", "b", "more/c")
    assert written == {f"{n}/{file}.png" for n in names for file in ("overlay", "mask-000")}
    assert {str(out / name) for name in written} <= set(ran.out.splitlines())


def test_the_images_may_come_after_the_labels(
    server: Server, folder: Path, capsys: Captured
) -> None:
    options = ["--server", server[1], "--format", "csv", "--labels"]
    assert cli.main(["classify", *options, "cat", "dog", "--", str(folder / "a.png")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    for images in (["b.png"], []):
        with pytest.raises(SystemExit):
            cli.main(["classify", *images, *options, "cat", str(folder / "a.png")])
        assert "a.png is an image: write images first, or after --" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["classify", *options, "cat", str(folder)])
    assert "write the images first, or after --" in " ".join(capsys.readouterr().err.split())
    assert len(server[0].calls) == 2  # key and file of the first command


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["--labels", "a cat", "a dog, asleep"], ["a cat", "a dog, asleep"]),
        (["--labels", "a cat, a dog,"], ["a cat", "a dog"]),
        (["--labels=-x"], ["-x"]),
        (["--labels", '"a dog, asleep"'], ["a dog, asleep"]),
        (
            ["--labels", 'a cat, "a ""dog"", asleep" , 5" disk'],
            ["a cat", 'a "dog", asleep', '5" disk'],
        ),
        (["--labels", '"my" dog,"'], ['"my" dog', '"']),
        (["--labels", "a cat", "--labels", "a,b"], ["a cat", "a,b"]),
    ],
)
def test_a_single_value_is_split_at_commas_and_several_never_are(
    ask: Any, photo: str, server: Server, given: list[str], labels: list[str]
) -> None:
    for command in ("classify", "semantic", "everything"):
        ask(command, photo, *given)
        assert list(server[0].calls[-1][0].labels) == labels


@pytest.mark.parametrize(
    "end", ["..", "%2e%2e", "x%2f..", "x/%2E%2E", "..%5c..", "%5c..%5c..", "...png", "..png", ""]
)
def test_an_address_names_nothing_outside_the_folder_that_is_written(
    end: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = io.BytesIO()
    Image.new("L", (6, 4)).save(picture, "PNG")
    monkeypatch.setattr("samclip.images.download", lambda url: picture.getvalue())
    site = "http://127.0.0.1:9"
    given = [f"{site}/{end}", f"{site}/b.png", "--server", server[1]]
    for number, more in enumerate(([], ["--format", "yolo"])):
        out = tmp_path / str(number) / "between" / "out"
        assert cli.main(["everything", *given, "--out", str(out), *more]) == 0
        (folder,) = (tmp_path / str(number)).rglob("*/out")
        written = {path for path in (tmp_path / str(number)).rglob("*") if path.is_file()}
        assert written == {path for path in folder.rglob("*") if path.is_file()}
        assert len({path.parent if not more else path.name for path in written}) > 1


def test_a_pattern_names_nothing_outside_the_folder_that_is_written(
    folder: Path, capsys: Captured, tmp_path: Path
) -> None:
    given = [f"{folder}/*/../../photos/*.png", str(folder / "b.PNG")]
    assert cli.main(["everything", *given, "--out", str(tmp_path / "out")]) == 1
    assert "leads out of the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_two_images_share_an_output_name(folder: Path) -> None:
    for name in ("a.jpg", "a.png.png", "more/c.jpg.png"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    names = answers.output_names(answers.expand([str(folder)]))
    assert sorted(names) == sorted(["a.jpg", "a.png", "a.png.png", "b", "more/c", "more/c.jpg.png"])
