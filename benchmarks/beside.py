"""``python -m benchmarks.beside``: a service alone, and beside a batch on the same cores, in turns.

One user segments a new photograph with a click, clicks on it three times more, and classifies
another new one, with a pause after each answer. Prints how long the answers took and how many
images the batch did meanwhile. A turn beside a batch begins when its first part is done; the
answers during its start are a column of their own.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks import traffic
from benchmarks.service import running
from benchmarks.traffic import Ask
from tests.checkout import ROOT, sources

PAUSE_S = 0.2
FILES, PART = 5000, 16
KINDS = ("click on a known image", "click on a new image", "classify a new image")
ALL = "all"
ALONE = "alone"
DRAWS = 2000
Times = dict[tuple[str, str], list[float]]
"""Milliseconds of each answer, by contender and kind."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beside", description=__doc__.replace("``", "")
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each contender (3)")
    parser.add_argument("--seconds", type=float, default=60, help="seconds per turn (60)")
    parser.add_argument(
        "--options",
        default="--embed --workers 1 --cpus-per-worker 1",
        help="options of samclip batch (%(default)s)",
    )
    parser.add_argument("--checkpoint", default="edge", help="of the service (edge)")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="checkout with the batch of an older commit"
    )
    arguments = parser.parse_args(argv)
    batches = {"beside": ROOT}
    if arguments.baseline:
        batches["beside the baseline"] = arguments.baseline.resolve()
    with tempfile.TemporaryDirectory() as folder, running(arguments.checkpoint) as service:
        photos = _photographs(Path(folder) / "photos")
        user = User(f"http://{service.http}")
        user.ask_for(10, "warm-up")
        for turn in range(arguments.turns):
            user.ask_for(arguments.seconds, ALONE)
            for name, root in batches.items():
                words = [str(photos), *arguments.options.split()]
                with Batch(root, words, Path(folder) / f"{name}-{turn}").running() as batch:
                    user.ask_until(batch.started, f"{name}, start")
                    before = batch.done()
                    user.ask_for(arguments.seconds, name)
                    rate = (batch.done() - before) * PART / arguments.seconds
                print(f"turn {turn + 1}, {name}: {rate:.1f} images/s", flush=True)
    print(_table(user.times, list(batches)))
    return 0


class User:
    """One who asks, waits for the answer and then a moment; ``times`` has how long each took."""

    def __init__(self, url: str) -> None:
        self.times: Times = defaultdict(list)
        self._http = httpx.Client(base_url=url, timeout=120)
        self._asks = _visits()

    def ask_for(self, seconds: float, name: str) -> None:
        end = time.monotonic() + seconds
        self.ask_until(lambda: time.monotonic() > end, name)

    def ask_until(self, over: Callable[[], bool], name: str) -> None:
        while not over():
            kind, ask = next(self._asks)
            path, content_type, body = traffic.to_service(ask)
            begin = time.perf_counter()
            reply = self._http.post(path, content=body, headers={"content-type": content_type})
            ms = 1000 * (time.perf_counter() - begin)
            self.times[name, kind].append(ms)
            self.times[name, ALL].append(ms)
            reply.raise_for_status()
            time.sleep(PAUSE_S)


@dataclass
class Batch:
    """A batch of the checkout at ``root``, as from a terminal of its own."""

    root: Path
    words: Sequence[str]
    out: Path

    @contextmanager
    def running(self) -> Iterator["Batch"]:
        """Run the batch until the end of the block."""
        words = [*self.words, "--out", str(self.out), "--part-size", str(PART)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samclip.cli", "batch", *words],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": sources(self.root)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield self
        finally:
            if self._process.poll() is None:
                left = psutil.Process(self._process.pid).children(recursive=True)
                self._process.terminate()
                self._process.wait()
                psutil.wait_procs(left, 60)

    def started(self) -> bool:
        return self.done() > 0

    def done(self) -> int:
        """Return the number of parts that are done. Ends the program if the batch has ended."""
        if (code := self._process.poll()) is not None:
            raise SystemExit(f"the batch has ended with {code}, before its turn was over")
        return len([*self.out.glob("images/*.parquet")])


def _visits() -> Iterator[tuple[str, Ask]]:
    known, new, classify = KINDS
    for number in itertools.count():
        file = traffic.fresh(2 * number)
        yield new, Ask("click", file, point=traffic.point(number))
        for more in range(traffic.CLICKS):
            yield known, Ask("click", file, True, traffic.point(number + more + 1))
        yield classify, Ask("classify", traffic.fresh(2 * number + 1))


def _photographs(folder: Path) -> Path:
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:05d}.jpg").write_bytes(traffic.photograph(number))
    return folder


def _table(times: Times, batches: Sequence[str]) -> str:
    text = ["| | | requests | p50, ms | p95, ms | p95 / alone |", "|---|---|---|---|---|---|"]
    for kind in (*KINDS, ALL):
        alone = np.array(times[ALONE, kind])
        for name in [ALONE, *(each for batch in batches for each in (f"{batch}, start", batch))]:
            found = np.array(times[name, kind])
            if not len(found):  # of a short start
                continue
            p50, p95 = np.percentile(found, [50, 95])
            text.append(
                f"| {kind} | {name} | {len(found)} | {p50:.1f} | {p95:.1f} "
                f"| {_ratio(found, alone)} |"
            )
    return "\n".join(text)


def _ratio(above: np.ndarray, below: np.ndarray) -> str:
    """Return the ratio of the 95th percentiles, with its bootstrap interval over requests."""
    random = np.random.default_rng(0)
    drawn = [
        np.percentile(random.choice(each, (DRAWS, len(each))), 95, axis=1)
        for each in (above, below)
    ]
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    ratio = np.percentile(above, 95) / np.percentile(below, 95)
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
