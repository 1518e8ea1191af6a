"""A batch on two nodes, each in its own network namespace, of which one is killed.

``make cluster`` runs it, as root.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.cluster import PATIENCE_S, SPACE, kill, nodes
from tests.photographs import draw, jpg

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="takes minutes: run make cluster"),
]
IMAGES, PARTS = 600, 60


def tables(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("part-*.parquet")}


def workers_on_the_other_node() -> int:
    pids = subprocess.run(["ip", "netns", "pids", SPACE], check=True, capture_output=True).stdout
    found = 0
    for pid in map(int, pids.split()):
        with suppress(psutil.NoSuchProcess):
            found += "MapWorker" in " ".join(psutil.Process(pid).cmdline())
    return found


def test_a_batch_uses_both_nodes_loses_one_and_changes_no_byte(tmp_path: Path) -> None:
    for number in range(IMAGES):
        file = tmp_path / f"photos/{number:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(jpg(draw(number, 90, 120).image_HW3))

    def command(out: str, *options: str) -> list[str]:
        words = ["batch", str(tmp_path / "photos"), "--out", str(tmp_path / out), "--embed"]
        words += ["--part-size", str(IMAGES // PARTS), "--cpus-per-worker", "1", "--json"]
        return [sys.executable, "-m", "samclip.cli", *words, *options]

    with (
        tempfile.TemporaryDirectory(prefix="s-", dir="/tmp", ignore_cleanup_errors=True) as short,
        nodes(Path(short)) as head,
    ):
        options: dict[str, Any] = {"env": head, "text": True, "stdout": subprocess.PIPE}
        with subprocess.Popen(command("killed", "--workers", "4"), **options) as driver:
            deadline = time.monotonic() + PATIENCE_S
            while len(tables(tmp_path / "killed")) < 16:  # of images and of failures
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert workers_on_the_other_node() > 0
            kill(SPACE)
            done = len(tables(tmp_path / "killed"))
            printed, _ = driver.communicate(timeout=2 * PATIENCE_S)
        assert driver.returncode == 0
        assert json.loads(printed)["counts"] == {"images": IMAGES, "failures": 0}
        print(f"\nkilled after {done // 2} of {PARTS} parts")
        whole = subprocess.run(command("whole", "--workers", "2"), timeout=PATIENCE_S, **options)
        assert whole.returncode == 0
    assert done < 2 * PARTS
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
