"""``python -m benchmarks.batch FOLDER``: a batch and the bare loop of the library, in turns.

While one of them runs the other one is stopped, so that both see the same machine. After each pair
of turns, prints images per second, processor time per image (with all of Ray), and the peak memory
of all processes so far. The batch computes in the precision that the loop has measured as the
fastest: on its own it might choose another one. Its turns begin with its first part, since a start
takes the same time for any number of images.
"""

import argparse
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq

LOOP = """
import sys
from itertools import cycle
from pathlib import Path
from samclip_core import SamClip
model = SamClip.load()
files = sorted(Path(sys.argv[1]).rglob("*.jpg"))
model.embed_image(files[0].read_bytes())
print(model.dtype, flush=True)
for file in cycle(files):
    model.embed_image(file.read_bytes())
    print(end=".", flush=True)
"""
BATCH = ("-m", "samclip.cli", "batch")
PAUSE_S, END_S = 0.1, 10
LOOK_EVERY = 100
"""Pauses between looks at the memory, which take the cores for 50 ms."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=__doc__.replace("``", "")
    )
    parser.add_argument("folder", type=Path, help="photographs (.jpg)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds per turn (30)")
    parser.add_argument("--options", default="", help="further options of samclip batch")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        said, out = scratch / "loop", scratch / "out"
        loop = stack.enter_context(contender(["-c", LOOP, str(arguments.folder)], said))
        loop.run(until=lambda: said.read_text().endswith("."))
        start = said.stat().st_size
        dtype = said.read_text().split()[0].partition(":")[0]
        words = [str(arguments.folder), "--out", str(out), "--embed", "--dtype", dtype]
        words += arguments.options.split()
        batch = stack.enter_context(contender([*BATCH, *words], scratch / "batch"))
        batch.run(until=lambda: any(out.glob("images/*.parquet")))
        for each in (loop, batch):
            each.forget()
        for turn in itertools.count(1):
            for each in (loop, batch):
                each.turn(arguments.seconds)
            if batch.ended():
                return 0
            images, since = _progress(out)
            looped = loop.figures(said.stat().st_size - start, 0)
            batched = batch.figures(images, since)
            print(f"turn {turn}, {dtype}: loop {looped}; batch {batched}", flush=True)
    return 0


def _progress(out: Path) -> tuple[int, float]:
    """Return the images of all parts but the first one, and the seconds since the last part."""
    parts = sorted(out.glob("images/*.parquet"), key=lambda part: part.stat().st_mtime)
    images = sum(pq.read_metadata(part).num_rows for part in parts[1:])
    return images, time.time() - parts[-1].stat().st_mtime


class Contender:
    """A process and all below it, which are stopped except during their turns."""

    def __init__(self, words: Sequence[str], said: Path) -> None:
        with said.open("wb") as stdout:
            self._process = psutil.Popen([sys.executable, *words], stdout=stdout)
        self._cpu, self._peak = dict[int, float](), 0
        self.forget()

    def forget(self) -> None:
        """Count from now on."""
        self._before_s, self._seconds, self._peak = self._look(), 0.0, 0

    def run(self, until: Callable[[], bool]) -> None:
        begin = time.monotonic()
        self._send(signal.SIGCONT)
        for tick in itertools.count(1):
            time.sleep(PAUSE_S)
            if self.ended() or until():
                break
            if tick % LOOK_EVERY == 0:
                self._look()
        self._send(signal.SIGSTOP)
        self._seconds += time.monotonic() - begin

    def turn(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.run(until=lambda: time.monotonic() > end)

    def ended(self) -> bool:
        """Return whether the process has ended. Ends the program if it has failed."""
        if code := self._process.poll():
            raise SystemExit(f"{self._process.args} ended with {code}")
        return code is not None

    def figures(self, images: int, unfinished_s: float) -> str:
        """Return what the turns gave; ``unfinished_s`` of them are not in the images."""
        cores = (self._look() - self._before_s) / self._seconds
        rate = images / (self._seconds - unfinished_s)
        return (
            f"{rate:.2f} images/s, {1000 * cores / rate:.1f} CPU ms per image, "
            f"peak {self._peak / 2**20:,.0f} MiB, {images} images"
        )

    def end(self) -> None:
        left = self._all()
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._send(number)
        for process in psutil.wait_procs(left, END_S)[1]:
            process.kill()

    def _all(self) -> list[psutil.Process]:
        if self.ended():
            return []
        return [self._process, *self._process.children(recursive=True)]

    def _send(self, number: int) -> None:
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _look(self) -> float:
        """Note the memory and the processor time of all; return the seconds of the latter."""
        total = 0
        for process in self._all():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                total += process.memory_full_info().pss
        self._peak = max(self._peak, total)
        return sum(self._cpu.values())


@contextmanager
def contender(words: Sequence[str], said: Path) -> Iterator[Contender]:
    """Start a process; end it and all below it at the end of the block."""
    made = Contender(words, said)
    try:
        yield made
    finally:
        made.end()


if __name__ == "__main__":
    sys.exit(main())
