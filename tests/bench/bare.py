"""The same work without a service: one process or one a core, alone or in batches, as good as a
loop over files can be.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from threading import Barrier
from typing import Any

import torch

from samclip_core import Prompt, SamClip, scores
from samclip_core.memory import keep_memory
from samclip_core.model import Dtype
from tests.bench import traffic
from tests.bench.bench import Bench

_loaded: dict[str, Any] = {}  # in a worker: its model, and the barrier that all start at


@dataclass(frozen=True)
class Way:
    """One way to write the loop; ``ahead`` decodes the next batch while one is encoded."""

    processes: int
    batch: int
    ahead: bool = False

    def __str__(self) -> str:
        decoding = ", decoding ahead" if self.ahead else ""
        return f"{self.processes} process(es), batches of {self.batch}{decoding}"


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CLASSIFY_WAYS = [
    *(Way(1, batch, ahead) for batch in (1, 8) for ahead in (False, True)),
    *(Way(CORES, batch) for batch in (1, 8)),
]
CLICK_WAYS = [Way(processes, batch) for processes in (1, CORES) for batch in (1, 4)]


@contextmanager
def loop(bench: Bench, work: str, way: Way) -> Iterator[Callable[[float], float]]:
    """The loop, ready to run: seconds → answers a second. ``work``: "classify" or "click"."""
    context = get_context("spawn")
    threads, barrier = CORES // way.processes, context.Barrier(way.processes)
    arguments = (str(bench.directory), bench.dtype, threads, barrier)
    with ProcessPoolExecutor(way.processes, context, _load, arguments) as pool:

        def run(seconds: float) -> float:
            started = [pool.submit(_loop, work, way, seconds) for _ in range(way.processes)]
            return sum(future.result() for future in started)

        run(0.1)  # the first call loads the model
        yield run


def best(bench: Bench, work: str, ways: Sequence[Way]) -> dict[Way, float]:
    """Answers a second of each way, the best one first."""
    rates = {}
    for way in ways:
        with loop(bench, work, way) as run:
            run(bench.seconds / 10)
            rates[way] = run(bench.seconds / 3)
    return dict(sorted(rates.items(), key=lambda item: -item[1]))


def _load(directory: str, dtype: Dtype, threads: int, barrier: Barrier) -> None:
    torch.set_num_threads(threads)
    keep_memory()
    model = SamClip.load(directory, dtype=dtype)
    text_LD = scores.class_embeddings(model.embed_text, traffic.LABELS, model.config.templates)
    features = [model.encode(file) for file in traffic.files()]
    _loaded.update(model=model, barrier=barrier, text_LD=text_LD, features=features)


def _loop(work: str, way: Way, seconds: float) -> float:
    _loaded["barrier"].wait()
    begin = time.perf_counter()
    done = (_classify if work == "classify" else _click)(way, begin + seconds)
    return done / (time.perf_counter() - begin)


def _classify(way: Way, ends: float) -> int:
    """Decode, encode, head."""
    model: SamClip = _loaded["model"]
    scale = model.config.logit_scale
    done = 0

    def decode(first: int) -> list[Any]:
        return [model.prepare(traffic.known(first + i)) for i in range(way.batch)]

    with ThreadPoolExecutor(1) as decoder:
        following = decoder.submit(decode, 0)
        while time.perf_counter() < ends:
            prepared = following.result() if way.ahead else decode(done)
            if way.ahead:
                following = decoder.submit(decode, done + way.batch)
            for features in model.encode_batch(prepared):
                pooled_D = model.embed_image(features)
                scores.classify(pooled_D, _loaded["text_LD"], traffic.LABELS, scale, None)
            done += way.batch
    return done


def _click(way: Way, ends: float) -> int:
    """The mask decoder, on embeddings that are there."""
    model: SamClip = _loaded["model"]
    done = 0
    while time.perf_counter() < ends:
        asked = [
            (_loaded["features"][i % 4], [Prompt(points=(traffic.point(i),))])
            for i in range(done, done + way.batch)
        ]
        model.sam_head.segment_batch(asked, multimask=False)
        done += way.batch
    return done
