"""Bad images, services that stop, interrupts and closed pipes."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from PIL import Image
from samclip import cli
from samclip.cli import answers

from tests.checkout import sources
from tests.fake_server import FakeService
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import Captured, Server


@pytest.mark.parametrize("bad", ["no-image.jpg", "empty.jpg", "missing.jpg", "folder.jpg"])
@pytest.mark.parametrize(
    ("command", "key"), [("classify --labels=cat,horse --top-k=1", "image"), ("embed", "of")]
)
def test_one_bad_photograph_does_not_lose_the_answers_about_the_others(
    run: Run, photo: str, bad: str, command: str, key: str
) -> None:
    path = Path(photo).with_name(bad)
    if "folder" in bad:
        path.mkdir()
    elif "missing" not in bad:
        path.write_bytes(b"" if "empty" in bad else b"broken")
    argv = command.split()
    for images in ([photo, str(path)], [str(path), photo]):
        ran = run(*argv, *images, "--json")
        rows = json.loads(ran.out)["results"]
        assert (ran.status, [row[key] for row in rows]) == (1, images)
        assert [bool(row.get("error")) for row in rows] == [image != photo for image in images]
        ran = run(*argv, *images)
        assert (ran.status, photo in ran.out) == (1, True)
        assert ran.err.startswith(f"samclip: {path}: ")
        assert len(ran.err.splitlines()) == 1


def test_a_service_that_stops_between_two_photographs_keeps_the_first_answer(
    run: Run, service: FakeService, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "AT_ONCE", 1)
    monkeypatch.setattr("samclip.transport._OPTIONS", [])  # does not ask again for seconds
    (other,) = greys(photo, 1)
    gone = "failed to connect to all addresses; last error: UNKNOWN: stopped"
    service.refuse_after(2, grpc.StatusCode.UNAVAILABLE, gone)  # key, then file
    ran = run("classify", photo, other, other, "--labels", "cat", "--json")
    answered, failed = json.loads(ran.out)["results"]
    assert (ran.status, answered["image"], answered["label"]) == (1, photo, "cat")
    assert failed["image"] == other
    assert "stopped" in failed["error"]
    assert "skipped" in failed["error"]


class Hurried(threading.Event):
    """Notes how long it is waited for, and does not wait."""

    waits: ClassVar[list[float]] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


BULK = ["classify {} --labels=cat", "index greys {}", "cache warm {}", "probe fit {} --out={}-new"]


@pytest.mark.parametrize("command", BULK)
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_a_busy_service_is_waited_for_as_long_as_it_says(
    run: Run,
    service: FakeService,
    photo: str,
    command: str,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(photo).parent
    for number, path in enumerate(map(Path, greys(photo, 4))):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        path.rename(folder / "ab"[number % 2] / path.name)
    monkeypatch.setattr("samclip.patience.Event", Hurried)
    monkeypatch.setattr("samclip.transport._OPTIONS", [])  # does not ask again by itself
    monkeypatch.setattr(Hurried, "waits", [])
    service.busy = [(grpc.StatusCode[code], "the queue is full", (("retry-after", "20"),))] * 4
    ran = run(*command.format(folder, folder).split())
    assert ran.status == 0, ran.err
    assert len(Hurried.waits) == 4
    assert min(Hurried.waits) == 20
    assert min(service.seconds_left) > 1e6  # no request has a deadline


def test_a_deadline_that_passes_every_time_is_an_error_of_its_photograph(
    run: Run, service: FakeService, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip.patience.Event", Hurried)
    service.refusal = (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within 60 s", ())
    ran = run("classify", photo, "--labels=cat")
    assert ran.status == 1
    assert f"{photo}: no answer within 60 s" in ran.err


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["embed", "no/such.jpg"], ["samclip: no/such.jpg: No such file or directory"]),
        (
            ["embed", "PHOTO", "--ca", "no/ca.pem"],
            ["samclip: no/ca.pem: No such file or directory"],
        ),
        (
            ["status", "--timeout", "5", "--server", "127.0.0.1:1"],
            ["samclip: no service answers at 127.0.0.1:1 (Connection refused). Start one (samclip"],
        ),
    ],
)
def test_an_error_is_one_line(
    argv: list[str], lines: list[str], photo: str, capsys: Captured
) -> None:
    assert cli.main([photo if word == "PHOTO" else word for word in argv]) == 1
    shown, errors = capsys.readouterr()
    for line, expected in zip(errors.splitlines(), lines, strict=True):
        assert line.startswith(expected)
    assert not shown


@pytest.mark.parametrize("command", ["describe", "classify PHOTO --labels a b", "index x PHOTO"])
def test_a_refused_key_is_answered_with_where_to_give_one(
    run: Run, service: FakeService, photo: str, command: str
) -> None:
    service.refusal = (grpc.StatusCode.UNAUTHENTICATED, "no API key, or an unknown one", ())
    ran = run(*command.replace("PHOTO", photo).split())
    assert ran.status == 1
    assert ran.err.startswith("samclip: no API key, or an unknown one (UNAUTHENTICATED, request ")
    assert ran.err.endswith("). Give the key with --api-key, or as SAMCLIP_API_KEY\n")


@pytest.mark.parametrize("command", ["demo", "mcp", "describe"])
def test_an_address_of_another_kind_is_named_by_all_commands(
    command: str, capsys: Captured
) -> None:
    assert cli.main([command, "--server", "ftp://gpu-1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("samclip: --server: 'ftp://gpu-1' is no address of a service: expected")


def greys(photo: str, count: int) -> list[str]:
    """Make photographs of different shades beside one; return their paths."""
    paths = [Path(photo).with_name(f"{shade:02}.png") for shade in range(count)]
    for shade, path in enumerate(paths):
        Image.new("L", (4, 4), shade).save(path)
    return [*map(str, paths)]


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": sources(), "TERM": "xterm", "COLUMNS": "100"}
    heard = ["env", "--default-signal=INT"]  # tests in the background of a shell ignore interrupts
    command = [*heard, sys.executable, "-m", "samclip.cli", *argv]
    return subprocess.Popen(command, **{"stderr": subprocess.PIPE, "env": environment} | options)


@pytest.mark.parametrize(("images", "waiting"), [(1, 1), (20, 4)])
def test_an_interrupted_command_ends_quietly(
    server: Server, photo: str, images: int, waiting: int
) -> None:
    service, address = server
    service.release.clear()
    process = start("classify", *greys(photo, images), "--labels", "cat,dog", "--server", address)
    while len(service.calls) < waiting and process.poll() is None:  # several threads wait
        time.sleep(0.01)
    while process.poll() is None:  # gRPC loses a signal that arrives while it starts a call
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("command", [["info", "edge"], ["describe"]])
def test_a_command_whose_reader_has_gone_ends_quietly(server: Server, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    more = ["--server", server[1]] if command == ["describe"] else []
    process = start(*command, *more, stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("command", [["info", "edge"], ["describe"], []])
def test_a_full_disk_is_one_line(server: Server, command: list[str]) -> None:
    more = ["--server", server[1]] if command == ["describe"] else []
    with open("/dev/full", "wb") as full:
        process = start(*command, *more, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == b"samclip: [Errno 28] No space left on device\n"


def test_an_interrupted_download_does_not_delay_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.jpg"
        process = start("classify", url, url + "?2", "--labels", "cat,dog")
        connection, _ = silent.accept()  # it never answers
        with connection:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)  # a download may take 30 s
    assert (process.returncode, errors) == (130, b"")


def test_a_reader_that_goes_after_the_first_line_ends_the_command_quietly(
    server: Server, photo: str
) -> None:
    argv = ("classify", *greys(photo, 40), "--labels", "cat,dog", "--format", "jsonl")
    process = start(*argv, "--server", server[1], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stderr as errors:
        with process.stdout as answers:
            assert answers.readline()
        assert (errors.read(), process.wait(60)) == (b"", 141)


def test_a_terminal_shows_rate_and_time_left_and_a_pipe_does_not(
    server: Server, photo: str, tmp_path: Path
) -> None:
    argv = ("classify", *greys(photo, 31), "--labels", "cat,dog", "--server", server[1])
    main_end, terminal = pty.openpty()
    with (tmp_path / "table").open("wb") as table:
        process = start(*argv, stdout=table, stderr=terminal)
    os.close(terminal)
    shown = "".join(iter(lambda: read_terminal(main_end), ""))
    os.close(main_end)
    assert process.wait(60) == 0
    assert all(part in shown for part in ("classify", "31/31", "/s"))
    assert (tmp_path / "table").read_bytes().startswith(b"image ")
    unseen = start(*argv, stdout=subprocess.DEVNULL)
    assert unseen.communicate()[1] == b""


def read_terminal(main_end: int) -> str:
    """Return what a terminal shows next; nothing after its program has ended."""
    try:
        return os.read(main_end, 2**16).decode(errors="replace")
    except OSError:
        return ""
