"""The library in a separate process, which measures the calls that it is sent.

Run by path with ``python -P`` and PYTHONPATH=CHECKOUT/client:CHECKOUT. It imports nothing else of
the benchmark, so that it can measure any commit. Arguments: a checkpoint, a dtype and a folder of
JPEG files. A line of its input is JSON: the name of a call, the seconds to repeat it for and the
least number of calls; or [], for the model's precision.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LABELS = ("a cat", "an astronaut", "a cup of coffee", "a rocket", "a motorcycle", "a dog")
SEVERAL = 16


class Calls:
    """The measured calls, each with its turn; only ``everything`` uses ``everything.jpg``."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        self._everything = (folder / "everything.jpg").read_bytes()
        names = sorted(set(folder.glob("*.jpg")) - {folder / "everything.jpg"})
        self._files = [name.read_bytes() for name in names]
        self._features: list[Any] = []
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def decode(self, turn: int) -> Any:
        return self._model.prepare(self._files[turn % len(self._files)])

    def new_image(self, turn: int) -> None:
        self._model.encode(self._files[turn % len(self._files)])

    def click(self, turn: int) -> None:
        from samclip_core import Prompt

        if not self._features:
            self._features = [self._model.encode(file) for file in self._files[:4]]
        point = (20.0 + turn % 140, 20.0 + 7 * turn % 140)
        self._model.segment(self._features[turn % 4], [Prompt(points=(point,))], False)

    def everything(self, turn: int) -> None:
        self._model.segment_everything(self._everything)

    def classify_several(self, turn: int) -> None:
        """Run the bare loop: files to answers, one thread per core."""
        numbers = range(turn * SEVERAL, (turn + 1) * SEVERAL)
        deque(self._threads.map(self._classify, numbers), maxlen=0)

    def _classify(self, number: int) -> None:
        self._model.classify(self._model.encode(self.decode(number)), LABELS)


def measure(call: Callable[[int], object], seconds: float, least: int) -> dict[str, Any]:
    """Return the milliseconds of each call and the mean CPU time per call."""
    taken: list[float] = []
    cpu, end = time.process_time(), time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        begin = time.perf_counter()
        call(len(taken))
        taken.append(1000 * (time.perf_counter() - begin))
    return {"ms": taken, "cpu_ms": 1000 * (time.process_time() - cpu) / len(taken)}


def main(arguments: Sequence[str]) -> None:
    from samclip_core import SamClip

    checkpoint, dtype, folder = arguments
    model = SamClip.load(checkpoint, dtype=dtype)
    calls = Calls(model, Path(folder))
    for line in sys.stdin:
        name, *limits = json.loads(line) or [""]
        answer = measure(getattr(calls, name), *limits) if name else str(model.dtype)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
