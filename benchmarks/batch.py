"""``python -m benchmarks.batch FOLDER``: a batch and the bare loop of the library, in turns.

While one of them runs the other one is stopped, so that both see the same machine. After each pair
of turns, prints images per second and processor time per image (with all of Ray) since the first
turn, the ratio of the two rates with its bootstrap interval over turns, and the most memory that
all processes had, sampled every 10 s. The batch computes in the precision that the loop has
measured as the fastest: on its own it might choose another one. Its turns begin with its first
part, since a start takes the same time for any number of images.
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

import numpy as np
import psutil
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
PAUSE_S, END_S = 0.1, 10
LOOK_EVERY = 100
"""Number of pauses between samples of the memory; each takes 50 ms of processor time."""
DRAWS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=__doc__.replace("``", "")
    )
    parser.add_argument("folder", help="photographs (.jpg)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds per turn (30)")
    parser.add_argument("--options", default="", help="further options of samclip batch")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        said, out = scratch / "loop", scratch / "out"
        loop = stack.enter_context(contender(said, "-c", LOOP, arguments.folder))
        loop.run(until=lambda: said.read_text().endswith("."))
        start = said.stat().st_size
        dtype = said.read_text().split()[0].partition(":")[0]
        words = [arguments.folder, "--out", str(out), "--embed", "--dtype", dtype]
        words += arguments.options.split()
        command = ("-m", "samclip.cli", "batch", *words)
        batch = stack.enter_context(contender(scratch / "batch", *command))
        batch.run(until=lambda: any(out.glob("images/*.parquet")))
        loop.reset()
        batch.reset()
        counts = [(0, 0.0, 0, 0.0)]  # images and seconds of both, after each turn
        while True:
            for contestant in (loop, batch):
                end = time.monotonic() + arguments.seconds
                contestant.run(until=lambda end=end: time.monotonic() > end)
            if batch.ended():
                break
            images, since_s = _progress(out)
            if images == counts[-1][2]:
                print("a turn in which no part was done", flush=True)
                continue
            looped = said.stat().st_size - start
            counts.append((looped, loop.seconds, images, batch.seconds - since_s))
            print(
                f"turn {len(counts) - 1}, {dtype}: loop {loop.figures(*counts[-1][:2])}; "
                f"batch {batch.figures(*counts[-1][2:])}; {_ratio(counts)}",
                flush=True,
            )
    if len(counts) == 1:
        raise SystemExit("the batch ended in its first turn: give more images, or fewer --seconds")
    return 0


def _progress(out: Path) -> tuple[int, float]:
    """Return the images of all parts but the first one, and the seconds since the last part."""
    parts = sorted(out.glob("images/*.parquet"), key=lambda part: part.stat().st_mtime)
    images = sum(pq.read_metadata(part).num_rows for part in parts[1:])
    return images, time.time() - parts[-1].stat().st_mtime


def _ratio(counts: Sequence[tuple[int, float, int, float]]) -> str:
    """Return the ratio of the rates, and its interval."""
    turns_T4 = np.diff(np.array(counts), axis=0)
    drawn_DT = np.random.default_rng(0).integers(len(turns_T4), size=(DRAWS, len(turns_T4)))

    def ratio(total_4: NDArray[np.float64]) -> NDArray[np.float64]:
        loop_images, loop_s, images, seconds = total_4
        return (images / seconds) / (loop_images / loop_s)

    low, high = np.percentile(ratio(turns_T4[drawn_DT].sum(1).T), [2.5, 97.5])
    return f"ratio {ratio(turns_T4.sum(0)):.3f} ({low:.3f} to {high:.3f})"


class Contender:
    """A process and its children, which run only in their turns."""

    def __init__(self, process: psutil.Popen) -> None:
        self._process, self._peak = process, 0
        self._all, self._cpu = [process], dict[int, float]()
        self.reset()

    def reset(self) -> None:
        """Count time from now on."""
        self._before_s, self.seconds = self._look(), 0.0

    def run(self, until: Callable[[], bool]) -> None:
        begin = time.monotonic()
        self.send(signal.SIGCONT)
        for tick in itertools.count(1):
            time.sleep(PAUSE_S)
            if self.ended() or until():
                break
            if tick % LOOK_EVERY == 0:
                self._look()
        self.send(signal.SIGSTOP)
        self.seconds += time.monotonic() - begin

    def ended(self) -> bool:
        """Return whether the process has ended. Ends the program if it has failed."""
        if code := self._process.poll():
            raise SystemExit(f"{self._process.args} ended with {code}")
        return code is not None

    def figures(self, images: int, seconds: float) -> str:
        """Return the rate, the processor time and the memory; images were done in ``seconds``."""
        cores, rate = (self._look() - self._before_s) / self.seconds, images / seconds
        return (
            f"{rate:.2f} images/s, {1000 * cores / rate:.1f} CPU ms per image, "
            f"peak {self._peak / 2**20:,.0f} MiB, {images} images"
        )

    def send(self, *signals: int) -> list[psutil.Process]:
        """Send signals to all processes, and return these; without signals only look for them."""
        if self._process.poll() is None:
            self._all = [self._process, *self._process.children(recursive=True)]
        for number, process in itertools.product(signals, self._all):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return self._all

    def _look(self) -> float:
        """Note the memory and the processor time of all; return the seconds of the latter."""
        total = 0
        for process in self.send():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                total += process.memory_full_info().pss
        self._peak = max(self._peak, total)
        return sum(self._cpu.values())


@contextmanager
def contender(said: Path, *words: str) -> Iterator[Contender]:
    """Start a Python process that prints to ``said``; end it and all below it after the block."""
    with said.open("wb") as stdout:
        process = Contender(psutil.Popen([sys.executable, *words], stdout=stdout))
    try:
        yield process
    finally:
        left = process.send(signal.SIGTERM, signal.SIGCONT)
        for child in psutil.wait_procs(left, END_S)[1]:
            child.kill()


if __name__ == "__main__":
    sys.exit(main())
