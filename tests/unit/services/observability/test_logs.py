"""Every line of the log is one JSON object, whoever writes it."""

import io
import json
import logging
import sys
import threading

import pytest

from services.observability import logs


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Capture the services' log; return a function that parses its lines."""
    logger = logging.getLogger("services")
    monkeypatch.setattr(logger, "handlers", [])
    level = logger.level
    with (tmp_path / "log").open("w+") as file:
        monkeypatch.setattr(logs._handler, "stream", file)

        def read() -> list[dict[str, object]]:
            file.seek(0)
            return [json.loads(line) for line in file]

        yield read
    logger.setLevel(level)


def test_a_line_is_json_with_the_request_and_its_fields(written):
    logs.start("INFO")
    logs.request_id.set("r-7")
    logging.getLogger("services.x").info("said %s", "ü\n", extra={"fields": {"code": "OK"}})
    (line,) = written()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "services.x",
        "message": "said ü\n",
        "request_id": "r-7",
        "code": "OK",
    }


def test_a_lone_surrogate_can_be_written():
    line = logs.JsonLines().format(logging.makeLogRecord({"msg": "the name is a\ud800"}))
    assert json.loads(line.encode())["message"] == "the name is a\ud800"


def test_the_level_changes_while_it_runs_and_no_line_comes_twice(written):
    logger = logging.getLogger("services.x")
    for level in ("WARNING", "DEBUG", "ERROR"):
        logs.start(level)
        logger.info("at %s", level)
    assert [line["message"] for line in written()] == ["at DEBUG"]


def test_what_libraries_print_becomes_json_line_by_line(capsys):
    with logs.only_json():
        print("a line\n\nof two", 1)
        print('{"message": "of ours"}', file=sys.stderr)
        print("no \\ JSON", file=sys.stderr)
        print("[1, 2]", flush=True)
    print("afterwards")
    written = capsys.readouterr()
    *lines, last = written.out.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["a line", "of two 1", "[1, 2]"]
    assert {json.loads(line)["level"] for line in lines} == {"INFO"}
    assert last == "afterwards"
    ours, other = written.err.splitlines()
    assert ours == '{"message": "of ours"}'
    assert json.loads(other)["message"] == "no \\ JSON"


def test_threads_that_print_at_once_do_not_mix_their_lines():
    output = io.StringIO()
    stream = logs.JsonStream(output)
    both = threading.Barrier(2)

    def write(word: str) -> None:
        stream.write(word)
        both.wait()
        stream.write("\n")

    threads = [threading.Thread(target=write, args=[word]) for word in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = {json.loads(line)["message"] for line in output.getvalue().splitlines()}
    assert messages == {"one", "two"}
