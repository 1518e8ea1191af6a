"""``samclip batch`` on a Ray of its own: whoever is killed, the result has the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from services.lake.worker import NICE
from tests.checkout import sources
from tests.http_server import Handler, serving
from tests.photographs import draw, jpg

pytestmark = pytest.mark.faults
IMAGES, PART = 96, 4
PARTS = 25
WORK = ("--embed", "--labels", "dog,cat")
PATIENCE_S = 600


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"{number:02d}.jpg").write_bytes(jpg(draw(number, 90, 120).image_HW3))
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("compiled"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAMCLIP_")}
    return kept | {"PYTHONPATH": sources(), "SAMCLIP_COMPILED_CACHE_DIR": cache}


def command(photos: Path, out: Path, *options: str) -> list[str]:
    base = [sys.executable, "-m", "samclip.cli", "batch", str(photos), "--out", str(out)]
    size = ("--part-size", str(PART), "--workers", "2", "--cpus-per-worker", "1")
    return [*base, *WORK, *size, *options]


def finished(
    photos: Path, out: Path, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(photos, out, *options),
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def result(out: Path) -> dict[str, bytes]:
    """Return all files of a result; of the plan, what it is about."""
    files = (path for path in out.rglob("*") if path.is_file())
    found = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith("_plan")}


@pytest.fixture(scope="module")
def undisturbed(
    photos: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out, index = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("index")
    environment = environment | {"SAMCLIP_INDEX_DIR": str(index)}
    run = finished(photos, out, environment, "--json", "--into", "pets")
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr  # LanceDB warns of forks, which Ray's start makes
    printed = json.loads(run.stdout)
    assert printed["counts"] == {"images": IMAGES, "failures": 1, "unread": 0}
    assert printed["indexed"] == IMAGES
    return result(out)


def done(out: Path) -> int:
    return len([*(out / "images").glob("*.parquet")])


def workers(driver: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                yield process
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def wait_for(out: Path, parts: int, driver: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while done(out) < parts:
        assert driver.poll() is None, "the batch ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_workers_change_no_byte(
    photos: Path, environment: dict[str, str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with subprocess.Popen(command(photos, tmp_path), env=environment) as driver:
        for parts in (1, 4):
            wait_for(tmp_path, parts, driver)
            victim = next(workers(driver.pid))
            assert victim.nice() == NICE  # interactive work comes first
            assert os.getsid(victim.pid) == victim.pid
            victim.send_signal(signal.SIGKILL)
            victim.wait(60)
            assert done(tmp_path) < PARTS
        assert driver.wait(PATIENCE_S) == 0
    assert result(tmp_path) == undisturbed


def test_a_killed_driver_resumes_and_changes_no_byte(
    photos: Path, environment: dict[str, str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with subprocess.Popen(command(photos, tmp_path), env=environment) as driver:
        wait_for(tmp_path, 2, driver)
        left = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
    psutil.wait_procs(left, 60)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert 2 <= len(kept) < PARTS
    run = finished(photos, tmp_path, environment)
    assert run.returncode == 0, run.stderr
    assert result(tmp_path) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = finished(photos, tmp_path, environment, "--embed", "--regions")
    assert again.returncode == 1
    assert "holds a batch with other work" in again.stderr


def test_two_runs_at_once_make_one_result(
    photos: Path, environment: dict[str, str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    started = [subprocess.Popen(command(photos, tmp_path), env=environment) for _ in range(2)]
    assert [each.wait(PATIENCE_S) for each in started] == [0, 0]
    assert result(tmp_path) == undisturbed


def test_too_many_failures_stop_a_batch(
    photos: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    run = finished(photos, tmp_path, environment, "--max-failures", "0")
    assert run.returncode == 1
    assert "1 images failed, at most 0 may" in run.stderr
    (failure,) = pq.read_table(tmp_path / "failures").to_pylist()
    assert failure["id"] == "bad.jpg"
    assert not (tmp_path / "manifest.json").exists()


def test_images_of_a_server_that_is_down_are_tried_again(
    photos: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    class Server(Handler):
        down = False

        def do_GET(self) -> None:
            content = (photos / self.path[1:]).read_bytes()
            self.answer(content, 503 if Server.down else 200, content_type="image/jpeg")

    with serving(Server) as address:
        names = tmp_path / "list.txt"
        names.write_text("".join(f"{address}/{number:02d}.jpg\n" for number in range(PART)))
        run = finished(names, tmp_path / "undisturbed", environment)
        assert run.returncode == 0, run.stderr
        Server.down = True
        run = finished(names, tmp_path / "out", environment, "--json")
        assert run.returncode == 3
        assert json.loads(run.stdout)["counts"] == {"images": 0, "failures": PART, "unread": PART}
        assert f"{PART} images could not be read" in run.stderr
        Server.down = False
        run = finished(names, tmp_path / "out", environment)
        assert run.returncode == 0, run.stderr
        assert result(tmp_path / "out") == result(tmp_path / "undisturbed")
        names.write_text(names.read_text() + f"{address}/{PART:02d}.jpg\n")
        run = finished(names, tmp_path / "out", environment)
        assert run.returncode == 3
        assert "the sources have other images now than when they were listed" in run.stderr
