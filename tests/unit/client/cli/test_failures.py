"""Bad images, services that stop, interrupts and closed pipes."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from samclip import cli
from samclip.cli import answers

from tests.checkout import sources
from tests.unit.client.conftest import Captured, Server


@pytest.mark.parametrize("bad", ["no-image.jpg", "empty.jpg", "missing.jpg", "folder.jpg"])
def test_one_bad_photograph_does_not_lose_the_answers_about_the_others(
    server: Server, photo: str, bad: str, capsys: Captured
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
            table, errors = capsys.readouterr()
            assert photo in table
            assert errors.startswith(f"samclip: {path}: ")
            assert len(errors.splitlines()) == 1


def test_a_service_that_stops_between_two_photographs_keeps_the_first_answer(
    server: Server, photo: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(answers, "AT_ONCE", 1)
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


@pytest.mark.parametrize("command", [["classify", "--labels=cat"], ["index", "greys"]])
def test_a_service_that_is_busy_for_a_moment_is_asked_again(
    server: Server, photo: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, address = server
    service.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests in flight", ())
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        service.refusal = None if len(waits) == 2 else service.refusal

    monkeypatch.setattr("samclip.many_photos.time.sleep", sleep)
    assert cli.main([*command, photo, "--server", address]) == 0
    assert waits == [0.5, 1]


def test_a_service_that_stays_busy_is_named(
    server: Server, photo: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    server[0].refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", ())
    monkeypatch.setattr("samclip.many_photos.WAITS_S", (0, 0))
    assert cli.main(["classify", photo, "--labels", "cat", "--server", server[1]]) == 1
    assert "the queue is full" in capsys.readouterr().err
    assert len(server[0].calls) == 3


def test_errors_are_one_line(photo: str, capsys: Captured) -> None:
    assert cli.main(["embed", photo, "--server", "127.0.0.1:1"]) == 1
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("samclip: failed to connect")
    assert hint.startswith("Is a service running at 127.0.0.1:1? Start one: samclip serve.")
    assert cli.main(["embed", "no/such.jpg"]) == 1
    assert capsys.readouterr() == ("", "samclip: no/such.jpg: No such file or directory\n")
    assert cli.main(["embed", photo, "--ca", "no/ca.pem"]) == 1
    assert capsys.readouterr().err == "samclip: no/ca.pem: No such file or directory\n"


@pytest.mark.parametrize("command", ["demo", "mcp", "describe"])
def test_an_address_of_another_kind_is_named_by_all_commands(
    command: str, capsys: Captured
) -> None:
    assert cli.main([command, "--server", "ftp://gpu-1"]) == 2
    assert capsys.readouterr().err.startswith("samclip: --server is 'ftp://gpu-1': expected HOST")


def run(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": sources()}
    heard = ["env", "--default-signal=INT"]  # tests in the background of a shell ignore interrupts
    command = [*heard, sys.executable, "-m", "samclip.cli", *argv]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


def test_an_interrupted_command_ends_quietly(server: Server, photo: str) -> None:
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
def test_a_command_whose_reader_has_gone_ends_quietly(server: Server, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    more = ["--server", server[1]] if command == ["describe"] else []
    process = run(*command, *more, stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("command", [["info", "edge"], ["describe"], []])
def test_a_full_disk_is_one_line(server: Server, command: list[str]) -> None:
    more = ["--server", server[1]] if command == ["describe"] else []
    with open("/dev/full", "wb") as full:
        process = run(*command, *more, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == b"samclip: [Errno 28] No space left on device\n"


def test_an_interrupted_folder_ends_quietly(server: Server, photo: str, tmp_path: Path) -> None:
    service, address = server
    service.release.clear()
    for shade in range(20):
        Image.new("L", (4, 4), shade).save(tmp_path / f"photos/{shade:02}.png")
    process = run("classify", str(Path(photo).parent), "--labels", "cat", "--server", address)
    while len(service.calls) < 4 and process.poll() is None:  # several threads wait
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")


def test_an_interrupted_download_does_not_delay_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.jpg"
        process = run("classify", url, url + "?2", "--labels", "cat")
        connection, _ = silent.accept()  # it never answers
        with connection:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)  # a download may take 30 s
    assert (process.returncode, errors) == (130, b"")


def test_a_reader_that_goes_after_the_first_line_ends_the_command_quietly(
    server: Server, photo: str
) -> None:
    folder = Path(photo).parent
    for shade in range(40):
        Image.new("L", (4, 4), shade).save(folder / f"{shade:02}.png")
    argv = ("classify", str(folder), "--labels", "cat", "--format", "jsonl")
    process = run(*argv, "--server", server[1], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (141, b"")


def test_a_terminal_shows_rate_and_time_left_and_a_pipe_does_not(
    server: Server, photo: str, tmp_path: Path
) -> None:
    folder = Path(photo).parent
    for shade in range(30):
        Image.new("L", (4, 4), shade).save(folder / f"{shade:02}.png")
    argv = ("classify", str(folder), "--labels", "cat", "--server", server[1])
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": sources(), "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "samclip.cli", *argv]
    with (tmp_path / "table").open("wb") as table:
        process = subprocess.Popen(command, stdout=table, stderr=terminal, env=environment)
    os.close(terminal)
    shown = "".join(iter(lambda: read_terminal(main_end), ""))
    os.close(main_end)
    assert process.wait(60) == 0
    assert "classify" in shown
    assert "31/31" in shown
    assert "/s" in shown
    assert (tmp_path / "table").read_bytes().startswith(b"image ")
    unseen = run(*argv, stdout=subprocess.DEVNULL)
    assert unseen.communicate()[1] == b""


def read_terminal(main_end: int) -> str:
    """Return what a terminal shows next; nothing after its program has ended."""
    try:
        return os.read(main_end, 2**16).decode(errors="replace")
    except OSError:
        return ""
