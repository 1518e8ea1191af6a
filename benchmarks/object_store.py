"""``python -m benchmarks.object_store``: how fast readers get photographs out of shards at a URL.

A stand-in for an object store answers after 30 ms and sends 100 MB/s to all readers together.
Readers take steps of the recipe's kind from shards of photographs of about 50 kB with a JSON; they
read and cut, and decode nothing. "One by one" asks for each photograph when it is drawn. The set is
small (2 GB), so the windows are too: 256 MB instead of 4 GiB.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from tests.object_store import ObjectStore, Served, serve
from tests.photographs import write_shard
from training import workers
from training.data import order
from training.data.order import seeded
from training.data.pool import Pool

SHARDS, OF_SHARD = 40, 1000
BYTES = 50_000  # of a photograph, on average
IMAGES = 256  # of a step: a GPU's share with eight of them
MB = 1e6


class Steps(Dataset[int]):
    """The bytes of a step's photographs."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __getitem__(self, step: int) -> int:
        self.pool.prepare(step, range(IMAGES))
        return sum(
            self.pool.draw(step, slot, seeded(step, slot), lambda sample, _: len(sample.encoded))
            for slot in range(IMAGES)
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.object_store", description=__doc__.replace("``", "")
    )
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=80, help=f"steps of {IMAGES} (80)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", f"{folder}/indexes")
        store = serve(Path(folder), Path(folder) / "notes", patch)
        for shard in range(SHARDS):
            write_shard(Path(folder) / f"bucket/set/train-{shard:05}.tar", dict(_samples(shard)))
        Pool("store://bucket", (("set", 1.0),), IMAGES, (0,))  # makes the index
        patch.setattr(order, "WINDOWS", 32)
        store.latency, store.rate = 0.03, 100 * MB
        print("| | frames per second | processor per frame | requests per frame ", end="")
        print("| MB read per MB used | first step |\n|---|---:|---:|---:|---:|---:|")
        few = max(1, arguments.steps // 8)
        _row("one by one", store, True, few, arguments.readers)
        _row("in parts", store, False, arguments.steps, arguments.readers)
    return 0


def _row(name: str, store: type[ObjectStore], few: bool, steps: int, readers: int) -> None:
    os.truncate(store.notes, 0)
    pool = Pool("store://bucket", (("set", 1.0),), IMAGES, (0,), few=few)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin, before = time.perf_counter(), spent.ru_utime + spent.ru_stime
    loader = iter(
        DataLoader(
            Served(Steps(pool)), batch_size=None, sampler=range(steps), num_workers=readers,
            prefetch_factor=1, multiprocessing_context=workers.clean(),
        )
    )  # fmt: skip
    used = next(loader)
    first = time.perf_counter()
    used += sum(loader)
    seconds, frames = time.perf_counter() - first, IMAGES * steps
    del loader  # ends the readers
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = spent.ru_utime + spent.ru_stime - before
    requests = store.requests()
    sent = sum(end - start for _, start, end, *_ in requests)
    print(
        f"| {name} | {(frames - IMAGES) / seconds:,.0f} | {1000 * processor / frames:.2f} ms "
        f"| {len(requests) / frames:.3f} | {sent / used:.2f} | {first - begin:.1f} s |",
        flush=True,
    )


def _samples(shard: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    random = seeded(shard)
    for number in range(OF_SHARD):
        photograph = random.bytes(int(random.integers(BYTES // 2, 3 * BYTES // 2)))
        yield f"{shard:05}{number:04}", {"jpg": photograph, "json": b'{"caption": "words"}'}


if __name__ == "__main__":
    sys.exit(main())
