"""The ``samclip`` command, against a service with known answers."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from samclip import cli

from tests.checkout import sources
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


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_classify(ask: Any, photo: str) -> None:
    answer = ask("classify", photo, "--labels", "cat", "horse", "--top-k", "1")
    model = {"name": "fake", "digest": "d1935", "kind": "edge", "dtype": "int8"}
    assert answer["model"] == model
    (row,) = answer["results"]
    assert (row["image"], row["label"], row["score"]) == (photo, "horse", 0.625)


def test_classify_parts(ask: Any, photo: str) -> None:
    boxes = ("--box", "3", "4", "10", "12", "--box", "0", "0", "2", "2")
    rows = ask("classify", photo, "--labels", "cat", "horse", "--top-k", "1", *boxes)["results"]
    assert [(row["box"], row["label"]) for row in rows] == [
        ([3, 4, 10, 12], "horse"),
        ([0, 0, 2, 2], "horse"),
    ]


def test_search_by_a_part_and_a_text(ask: Any, photo: str, server: tuple[FakeService, str]) -> None:
    ask("index", "greys", photo)
    ask("search", "greys", "--image", photo, "--box", "1", "2", "5", "6", "--with-text", "asleep")
    request = server[0].calls[-1][0]
    box = request.area.box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (1, 2, 5, 6)
    assert request.with_text == "asleep"


def test_segment_writes_masks(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    boxes = ("--box", "3", "4", "10", "12", "--box", "0", "0", "2", "2")
    rows = ask("segment", photo, *boxes, "--out", str(out))["results"]
    assert [row["area"] for row in rows] == [56, 4]
    assert rows[0]["box"] == [3, 4, 10, 12]
    assert sorted(path.name for path in out.iterdir()) == [
        "mask-000.png",
        "mask-001.png",
        "overlay.png",
    ]
    mask_HW = read(out / "mask-000.png")
    assert set(np.unique(mask_HW)) == {0, 255}
    assert (mask_HW[4:12, 3:10] == 255).all()
    overlay_HW3 = read(out / "overlay.png")
    assert overlay_HW3.shape == (HEIGHT, WIDTH, 3)
    assert (overlay_HW3[-1, -1] == 99).all()
    assert (overlay_HW3[8, 6] != 99).any()


def test_segment_passes_its_prompt_on(
    ask: Any, photo: str, server: tuple[FakeService, str]
) -> None:
    rows = ask("segment", photo, "--point", "5", "6", "--negative", "1", "2", "--multimask")
    assert len(rows["results"]) == 3
    request = server[0].calls[-1][0]
    assert [(p.x, p.y, p.negative) for p in request.prompts[0].points] == [
        (5, 6, False),
        (1, 2, True),
    ]
    texts = "--text", "a dog", "--text", "a cat", "--not", "a wolf", "--min-score", "0.5"
    rows = ask("segment", photo, *texts)
    assert [row["label"] for row in rows["results"]] == ["a dog", "a cat"]
    request = server[0].calls[-1][0]
    assert request.min_score == 0.5
    assert [list(prompt.not_texts) for prompt in request.prompts] == [["a wolf"]] * 2


def test_semantic(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = ask("semantic", photo, "--labels", "sky", "sea", "--refine", "--out", str(out))
    assert [(r["label"], r["share"], r["score"]) for r in rows["results"]] == [
        ("sky", 0.5, 0.75),
        ("sea", 0.5, 0.75),
    ]
    assert (read(out / "mask-001.png")[:, WIDTH // 2 :] == 255).all()
    assert read(out / "overlay.png").shape[0] > HEIGHT  # with the legend below the image


def test_explain(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--label", "a dog", "--others", "sky", "--out", str(out))
    rows = ask("explain", photo, *options)["results"]
    highest_at = [WIDTH // 2, 0]
    assert rows == [{"label": "a dog", "low": 0, "high": 0.5, "highest_at": highest_at}]
    levels_HW = read(out / "heat.png")
    assert levels_HW.shape == (HEIGHT, WIDTH)
    assert (levels_HW[:, WIDTH // 2 :] == 255).all()
    assert read(out / "overlay.png").shape[0] > HEIGHT  # with the range below the image


def test_everything(ask: Any, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = ask("everything", photo, "--points-per-side", "3", "--labels", "a", "--out", str(out))
    assert [row["label"] for row in answer["results"]] == ["a"] * 3
    assert len(list(out.iterdir())) == 4


def test_a_panoptic_picture_and_its_json_as_cocos_tools_read_them(
    ask: Any, photo: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = ask("everything", photo, "--labels", "a", "b", "--panoptic", "--out", str(out))
    content = json.loads((out / "panoptic.json").read_text())
    (image,), (annotation,) = content["images"], content["annotations"]
    assert annotation["image_id"] == image["id"]
    assert (image["file_name"], image["width"]) == (Path(photo).name, WIDTH)
    names = {category["id"]: category["name"] for category in content["categories"]}
    colours_HW3 = np.asarray(Image.open(out / "panoptic" / annotation["file_name"])).astype(int)
    ids_HW = colours_HW3[..., 0] + 256 * colours_HW3[..., 1] + 256**2 * colours_HW3[..., 2]
    assert {segment["id"] for segment in annotation["segments_info"]} == set(np.unique(ids_HW))
    for segment, row in zip(annotation["segments_info"], rows["results"], strict=True):
        y_N, x_N = np.nonzero(ids_HW == segment["id"])
        x, y, width, height = segment["bbox"]
        assert (x, y, x + width, y + height) == (
            x_N.min(), y_N.min(), x_N.max() + 1, y_N.max() + 1,
        )  # fmt: skip
        assert segment["area"] == len(y_N) == row["area"]
        assert segment["iscrowd"] == 0
        assert names[segment["category_id"]] == row["label"] != ""


def test_embed(ask: Any, photo: str) -> None:
    rows = ask("embed", photo, "--text", "a", "bb")["results"]
    assert [row["of"] for row in rows] == [photo, "a", "bb"]
    assert rows[0]["vector"] == [0.5] * 4  # unit length
    assert rows[1]["vector"] == [0, 1, 0, 0]


def test_collections(ask: Any, photo: str, server: tuple[FakeService, str]) -> None:
    folder = Path(photo).parent
    (folder / "more").mkdir()
    for shade in range(9):
        Image.new("L", (4, 4), shade).save(folder / "more" / f"{shade}.PNG")
    (folder / "notes.txt").write_text("no image")
    assert ask("index", "greys", str(folder))["results"][0]["indexed"] == 10
    assert [len(request.items) for request, _ in server[0].calls] == [8, 2]
    hits = ask("search", "greys", "--text", "more/3.PNG", "--top-k", "2")["results"]
    assert hits[0]["id"] == "more/3.PNG"
    assert len(ask("search", "greys", "--image", photo)["results"]) == 10
    assert len(ask("search", "greys", "--image", photo, "--offset", "7")["results"]) == 3
    assert ask("describe")["results"][0]["count"] == 10
    assert ask("delete", "greys", "grey.png")["results"][0]["deleted"] == 1
    assert ask("delete", "greys", "--all", "--yes")["results"][0]["deleted"] == 9


@pytest.fixture
def greys(server: tuple[FakeService, str], photo: str) -> Iterator[Any]:
    """Make a collection of two photographs; return a function that deletes from it.

    The function returns the exit status and the number of remaining items.
    """
    other = Path(photo).with_name("other.png")
    other.write_bytes(Path(photo).read_bytes())
    cli.main(["index", "greys", photo, str(other), "--server", server[1]])

    def delete(*argv: str) -> tuple[int, int]:
        code = cli.main(["delete", "greys", *argv, "--server", server[1]])
        return code, len(server[0].collections["greys"])

    return delete


@pytest.mark.parametrize(
    "argv", [(), ("--all",), ("--yes",), ("grey.png", "--all"), ("grey.png", "--all", "--yes")]
)
def test_a_script_that_names_no_ids_deletes_nothing(
    greys: Any, argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert greys(*argv) == (1, 2)
    assert "--all --yes" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [(), ("--all",)])
def test_a_person_is_asked_before_a_collection_is_deleted(
    greys: Any,
    argv: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert greys(*argv) == (1, 2)
    asked = capsys.readouterr().err
    assert "all 2 photographs of 'greys'" in asked
    assert "nothing was deleted" in asked
    monkeypatch.setattr(sys, "stdin", Terminal("greys\n"))
    assert greys(*argv) == (0, 0)


class Terminal(io.StringIO):
    """A stand-in for a terminal with typed input."""

    def isatty(self) -> bool:
        return True


def test_metadata_is_stored_and_searched_for(ask: Any, photo: str) -> None:
    ask("index", "greys", photo, "--metadata", "owner=ann", "--metadata", "x=a=b")
    search = ("search", "greys", "--text", "grey", "--where", "x=a=b", "--where")
    (row,) = ask(*search, "owner=ann")["results"]
    assert row["metadata"] == {"owner": "ann", "x": "a=b"}
    assert ask(*search, "owner=bob")["results"] == []


def test_metadata_without_a_value_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["search", "greys", "--text", "x", "--where", "owner"])
    assert exit_.value.code == 2
    assert "'owner' is not KEY=VALUE" in capsys.readouterr().err


def test_index_tells_what_it_could_not_read(
    server: tuple[FakeService, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"broken")
    assert cli.main(["index", "greys", str(tmp_path), "--server", server[1]]) == 1
    assert "bad.jpg: not an image" in capsys.readouterr().out


def test_photographs_that_would_share_an_id_are_named_and_none_is_sent(
    server: tuple[FakeService, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / folder / "cat.png" for folder in "ab"]
    for shade, path in enumerate(paths):
        path.parent.mkdir()
        Image.new("L", (4, 4), shade).save(path)
    for given in (paths, [path.parent for path in paths]):
        argv = ["index", "greys", *map(str, given), "--server", server[1]]
        assert cli.main(argv) == 1
        message = capsys.readouterr().err
        assert all(str(path) in message for path in paths)
        assert "cat.png" not in server[0].collections.get("greys", {})
    assert cli.main(["index", "greys", str(tmp_path), "--server", server[1]]) == 0
    assert set(server[0].collections["greys"]) == {"a/cat.png", "b/cat.png"}


def test_index_reports_the_photographs_that_it_replaced(ask: Any, photo: str) -> None:
    (row,) = ask("index", "greys", photo, photo)["results"]  # a repeated file is not replaced
    assert (row["indexed"], row["replaced"]) == (1, 0)
    (row,) = ask("index", "greys", photo)["results"]
    assert (row["indexed"], row["replaced"]) == (1, 1)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Make a folder with one photograph, and four paths that cannot be indexed."""
    Image.new("L", (4, 4), 5).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / os.fsdecode(b"latin-\xe9.png")).write_bytes((tmp_path / "good.png").read_bytes())
    return tmp_path


def test_index_passes_over_bad_paths(
    server: tuple[FakeService, str], mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["index", "greys", str(mixed), "--server", server[1], "--json"]) == 1
    first, *bad = json.loads(capsys.readouterr().out)["results"]
    assert (first["indexed"], first["failed"]) == (1, 4)
    assert [*server[0].collections["greys"]] == ["good.png"]
    errors = " ".join(row["error"] for row in bad)
    assert "empty.jpg: the file is empty" in errors
    assert "folder.jpg: " in errors
    assert "link.jpg: " in errors
    assert "latin-\udce9.png: the id is not valid UTF-8" in errors
    assert cli.main(["index", "greys", str(mixed), "--server", server[1]]) == 1
    assert "latin-" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["no-image.jpg", "empty.jpg", "missing.jpg", "folder.jpg"])
def test_one_bad_photograph_does_not_lose_the_answers_about_the_others(
    server: tuple[FakeService, str], photo: str, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(photo).with_name(bad)
    if "folder" in bad:
        path.mkdir()
    elif "missing" not in bad:
        path.write_bytes(b"" if "empty" in bad else b"broken")
    for command, key in (("classify", "image"), ("embed", "of")):
        labels = ["--labels", "cat"] if command == "classify" else []
        for images in ([photo, str(path)], [str(path), photo]):
            argv = [command, *images, *labels, "--server", server[1]]
            assert cli.main([*argv, "--json"]) == 1
            rows = json.loads(capsys.readouterr().out)["results"]
            assert [row[key] for row in rows] == images
            assert [bool(row.get("error")) for row in rows] == [image != photo for image in images]
            assert cli.main(argv) == 1
            table = capsys.readouterr().out
            assert photo in table
            assert str(path) in table


def test_a_service_that_stops_between_two_photographs_keeps_the_first_answer(
    server: tuple[FakeService, str], photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service, address = server
    other = Path(photo).with_name("other.png")
    Image.new("L", (4, 4), 7).save(other)
    service.refuse_after(2, grpc.StatusCode.UNAVAILABLE, "stopped")  # key, then file
    argv = ["classify", photo, str(other), str(other), "--labels", "cat", "--server", address]
    assert cli.main([*argv, "--json"]) == 1
    answered, failed = json.loads(capsys.readouterr().out)["results"]
    assert (answered["image"], answered["label"]) == (photo, "cat")
    assert failed["image"] == str(other)
    assert "stopped" in failed["error"]
    assert "skipped" in failed["error"]


def test_the_table(
    server: tuple[FakeService, str], photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["classify", photo, "--labels", "cat", "horse", "--server", server[1]]
    assert cli.main(argv) == 0
    head, horse, cat = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "label", "score", "similarity"]
    assert horse.split() == [photo, "horse", "0.625", "0.050"]
    assert cat.index("cat") == head.index("label")
    assert len(head) == len(horse) == len(cat)


def test_cells() -> None:
    rows = [{"vector": [0.5] * 9, "metadata": {"a": "b"}, "box": [1.0, 2.0]}]
    line = cli.table(rows).splitlines()[1]
    assert line.split() == ["[0.500,", "0.500,", "0.500,", "…", "9]", "a=b", "[1.000,", "2.000]"]
    assert cli.table([]) == "nothing found"


def test_errors_are_one_line(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["embed", photo, "--server", "127.0.0.1:1"]) == 1
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("samclip: failed to connect")
    assert hint == "Is a service running at 127.0.0.1:1? Start one: samclip serve"
    assert cli.main(["embed", "no/such.jpg"]) == 1
    assert "no/such.jpg" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in (
        *("serve", "classify", "segment", "semantic", "explain", "everything", "index", "search"),
        *("embed", "convert", "export", "train", "eval", "info", "demo", "delete", "describe"),
        *("reindex", "push", "pull"),
    ):
        assert f"\n    {command} " in text


def test_parts_are_called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    part = ModuleType("training.train")
    part.main = lambda argv: len(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training.train", part)
    assert cli.main(["train", "--recipe", "debug"]) == 2


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        cli.PARTS, "serve", cli.PARTS["serve"]._replace(module="no_such_package.serve")
    )
    assert cli.main(["serve"]) == 1
    message = capsys.readouterr().err
    assert "samclip serve needs no_such_package" in message
    assert "pip install 'samclip[serve]'" in message


def run(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": sources()}
    command = [sys.executable, "-m", "samclip.cli", *argv]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


def test_an_interrupted_command_ends_quietly(server: tuple[FakeService, str], photo: str) -> None:
    service, address = server
    service.release.clear()
    process = run("classify", photo, "--labels", "cat", "--server", address)
    while not service.calls and process.poll() is None:
        time.sleep(0.01)
    while process.poll() is None:  # gRPC loses a signal that arrives while it starts a call
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("command", [["info", "edge"], ["describe"]])
def test_a_command_whose_reader_has_gone_ends_quietly(
    server: tuple[FakeService, str], command: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    more = ["--server", server[1]] if command == ["describe"] else []
    process = run(*command, *more, stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")
