"""``python -m benchmarks.batch FOLDER``: a batch beside the bare loop of the library.

Prints images per second, processor time per image (with all of Ray), and the peak memory of all
processes. The batch computes in the precision that the loop has measured as the fastest: on its own
it might choose another one. The rate and the time of a batch are those between its first and its
last part: the start takes the same time for any number of images.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq

BARE = """
import sys, time
from pathlib import Path
from samclip_core import SamClip
model = SamClip.load()
files = sorted(Path(sys.argv[1]).rglob("*.jpg"))
model.embed_image(files[0].read_bytes())
start, cpu = time.perf_counter(), time.process_time()
for file in files:
    model.embed_image(file.read_bytes())
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(len(files) / seconds, 1000 * cpu / len(files), model.dtype)
"""
COMMAND = (sys.executable, "-m", "samclip.cli", "batch")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=__doc__.replace("``", "")
    )
    parser.add_argument("folder", type=Path, help="photographs (.jpg)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds (2)")
    parser.add_argument("--options", default="", help="further options of samclip batch")
    arguments = parser.parse_args(argv)
    for _ in range(arguments.rounds):
        bare = subprocess.run(
            [sys.executable, "-c", BARE, arguments.folder], check=True, capture_output=True
        )
        *figures, stated = bare.stdout.decode().split()
        rate, cpu_ms, dtype = *map(float, figures), stated.partition(":")[0]
        print(f"bare loop: {rate:.2f} images/s, {cpu_ms:.1f} CPU ms per image, {dtype}", flush=True)
        options = ["--dtype", dtype, *arguments.options.split()]
        print(f"batch:     {_batch(arguments.folder, options)}", flush=True)
    return 0


def _batch(folder: Path, options: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as out:
        command = [*COMMAND, str(folder), "--out", out, "--embed", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        peak, first_s, cpu = 0, 0.0, dict[int, float]()
        while process.poll() is None:
            peak = max(peak, _look(process.pid, cpu))
            if not first_s and any(Path(out).glob("images/*.parquet")):
                first_s = sum(cpu.values())
            time.sleep(2)
        assert process.returncode == 0, command
        parts = sorted(Path(out).glob("images/*.parquet"), key=lambda part: part.stat().st_mtime)
        rows = [pq.read_metadata(part).num_rows for part in parts]
        if len(parts) < 2:
            raise SystemExit(
                f"{folder} is one part: give more images, or --options '--part-size N'"
            )
        seconds = parts[-1].stat().st_mtime - parts[0].stat().st_mtime
    ms = 1000 * (sum(cpu.values()) - first_s) / sum(rows[1:])
    return (
        f"{sum(rows[1:]) / seconds:.2f} images/s, {ms:.1f} CPU ms per image, "
        f"peak {peak / 2**20:,.0f} MiB, {sum(rows)} images"
    )


def _look(pid: int, cpu: dict[int, float]) -> int:
    """Note the processor time of each process below ``pid``; return the memory of all."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            times = process.cpu_times()
            cpu[process.pid] = times.user + times.system
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
