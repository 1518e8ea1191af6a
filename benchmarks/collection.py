"""Collections in a folder or a bucket: ``python -m benchmarks.collection COUNT [--bucket]``.

Prints a Markdown table: milliseconds of wall time and of CPU per call, of this process alone. The
vectors are 1,000 clusters of unequal sizes. A comparison of all vectors by NumPy in memory is the
limit that a search without an index can reach. ``--bucket``: a local server of S3 (moto), 10 ms
away.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import stored_objects as objects
from samclip_core.geometry import Geometry
from services.retrieval import upkeep
from services.retrieval.collection import Collection, pages
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from services.settings import Settings
from tests.faults import relay
from tests.ports import free_port
from tests.vectors import made_up, outline

D, MODEL, DTYPE = 512, "m" * 64, "float32"
QUERIES, SMALL = 200, 30
TOGETHER, WORKED = 1000, 20  # items per addition; additions between two works in the background
OBJECTS, LATENCY_S, SIDE = 85, 0.010, 64
Vectors = NDArray[np.float32]
OPENED = """
import sys, psutil
from benchmarks.collection import embeddings, opened, Query
_, queries = embeddings(0)
pets = opened(sys.argv[1]).get("pets")
for query in queries[:20]:
    pets.search(Query(query, 10))
print(psutil.Process().memory_info().rss)
"""


def embeddings(count: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return vectors, N×D, and queries: 1,000 clusters of unequal sizes, on a falling spectrum.

    A common mean gives unrelated vectors a cosine of about 0.5, and members of a cluster have one
    of about 0.8, as images do in CLIP's space.
    """
    random = np.random.default_rng(seed)
    spread_D = (np.arange(1, D + 1) ** -0.5).astype(np.float32)
    spread_D /= np.linalg.norm(spread_D)
    centre_CD = random.normal(size=(1000, D)).astype(np.float32) * spread_D
    mean_D = random.normal(size=D).astype(np.float32) / np.sqrt(D) * 1.2
    share_C = random.pareto(1.5, 1000) + 0.1
    vectors_ND = np.empty((QUERIES + count, D), np.float32)
    for start in range(0, len(vectors_ND), 50_000):
        part_ND = vectors_ND[start : start + 50_000]
        of_N = random.choice(1000, len(part_ND), p=share_C / share_C.sum())
        noise_ND = random.standard_normal(part_ND.shape, np.float32) * spread_D
        part_ND[:] = mean_D + centre_CD[of_N] * 0.9 + noise_ND * 0.8
        part_ND /= np.linalg.norm(part_ND, axis=1, keepdims=True)
    return vectors_ND[QUERIES:], vectors_ND[:QUERIES]


def opened(place: str) -> Collections:
    return Collections(Registry(Settings(index_dir=place).index_dir), MODEL, D)


class Table:
    """Prints figures as they are measured."""

    def __init__(self, title: str):
        print(f"| {title} | wall | CPU |\n|---|---|---|", flush=True)

    def calls(self, name: str, call: Callable[[Any], object], given: Sequence[Any]) -> None:
        """Print the median and the 95th percentile of a call's milliseconds, and its mean CPU."""
        walls, began = list[float](), process_time()
        for one in given:
            begin = perf_counter()
            call(one)
            walls.append(1e3 * (perf_counter() - begin))
        cpu = 1e3 * (process_time() - began) / len(given)
        p50, p95 = np.percentile(walls, [50, 95])
        self.row(name, f"p50 {p50:,.1f}, p95 {p95:,.1f} ms", f"{cpu:,.1f} ms")

    @staticmethod
    def row(name: str, wall: str, cpu: str = "") -> None:
        print(f"| {name} | {wall} | {cpu} |", flush=True)


def item(number: int, vector_D: Vectors, packed: bytes = b"") -> Item:
    return Item(
        f"{number:09}",
        vector_D,
        {"hundredth": str(number % 100), "tenth": str(number % 10)},
        packed,
    )


def load(table: Table, every: Collections, vectors_ND: Vectors, together: int) -> None:
    """Add all vectors, and do the work that a service does in the background."""
    settings = Settings(max_collection_items=10**9)
    added, worked = np.zeros(2), np.zeros(2)

    def clocks() -> NDArray[np.float64]:
        return np.array([perf_counter(), process_time()])

    for number, some in enumerate(pages(range(len(vectors_ND)), together)):
        made, begin = [item(each, vectors_ND[each]) for each in some], clocks()
        every.add("pets", DTYPE, made, settings)
        added += clocks() - begin
        if number % WORKED == WORKED - 1:
            worked += work(every, clocks)
    upkeep.QUIET_S = 0  # as if some time had passed
    worked += work(every, clocks)
    wall, cpu = len(vectors_ND) / added
    table.row(f"add {together:,} at once", f"{wall:,.0f} per second", f"{cpu:,.0f} per CPU second")
    table.row("indexes, joined files, all in all", f"{worked[0]:,.1f} s", f"{worked[1]:,.1f} s")


def work(every: Collections, clocks: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    begin = clocks()
    while due := every.registry.due():
        due()
    taken: NDArray[np.float64] = clocks() - begin
    return taken


def measure(table: Table, place: str, count: int, together: int) -> None:
    vectors_ND, query_QD = embeddings(count)
    every = opened(place)
    load(table, every, vectors_ND, together)
    pets = every.get("pets")
    reads(table, pets, vectors_ND, query_QD)
    changes(table, every, pets, count)
    run = subprocess.run([sys.executable, "-c", OPENED, place], stdout=subprocess.PIPE, check=True)
    table.row("memory of a process that has searched", f"{int(run.stdout) / 2**20:,.0f} MiB")


def reads(table: Table, pets: Collection, vectors_ND: Vectors, query_QD: Vectors) -> None:
    def flat(query_D: Vectors) -> NDArray[np.int64]:
        scores_N = vectors_ND @ query_D
        best_K = np.argpartition(-scores_N, 10)[:10]
        return best_K[np.argsort(-scores_N[best_K])]

    best = [{f"{each:09}" for each in flat(query_D)} for query_D in query_QD]
    found = list[set[str]]()
    pets.search(Query(query_QD[0], 10))
    table.calls("search: all compared by NumPy, in memory", flat, query_QD)
    table.calls(
        "search",
        lambda one: found.append({hit.id for hit in pets.search(Query(one, 10))}),
        query_QD,
    )
    recall = np.mean([len(ours & right) / 10 for ours, right in zip(found, best, strict=True)])
    table.row("recall of the ten best", f"{recall:.4f}")
    some = query_QD[:SMALL]

    def filtered(of: str) -> Callable[[Vectors], object]:
        return lambda query_D: pets.search(Query(query_D, 10, filter={of: "7"}))

    table.calls("search, filter of 1 %", filtered("hundredth"), some)
    table.calls("search, filter of 10 %", filtered("tenth"), some)
    table.calls("search, page 50", lambda one: pets.search(Query(one, 10, 490)), some)
    table.calls("page 50 of the list", lambda one: pets.items(f"{one:09}", 100), [*range(SMALL)])


def changes(table: Table, every: Collections, pets: Collection, count: int) -> None:
    settings, random = Settings(max_collection_items=10**9), np.random.default_rng(1)
    new_ND, _ = embeddings(SMALL * 64 + 4000, seed=2)

    def of(number: int) -> Item:
        return item(number, new_ND[number % len(new_ND)])

    def add(first: int, requests: int) -> list[int]:
        made = [[of(first + each)] for each in range(requests)]
        return every.add_together("pets", DTYPE, made, settings)

    begin = count + 64 * np.arange(SMALL)
    table.calls("add 1", lambda first: add(first, 1), begin)
    table.calls("add 32 requests of 1 at once", lambda first: add(first + 1, 32), begin)
    there = random.choice(count, 2 * SMALL + 3000, replace=False)
    table.calls("replace 1", lambda one: pets.upsert([of(one)]), there[:SMALL])
    thousands = there[-1000:], there[-2000:-1000]
    table.calls("replace 1,000", lambda some: pets.upsert([*map(of, some)]), thousands)
    table.calls("delete 1", lambda one: pets.delete([f"{one:09}"]), there[SMALL : 2 * SMALL])
    for some in thousands:
        table.calls("delete 1,000", pets.delete, [[f"{one:09}" for one in some]])


def of_objects(table: Table, place: str, photographs: int) -> None:
    """Photographs with OBJECTS objects each, whose vectors are those of the clusters."""
    vectors_ND, query_QD = embeddings(photographs, seed=3)
    geometry, random = Geometry(480, 640, 1024), np.random.default_rng(4)
    packed = bytearray(
        made_up(OBJECTS, SIDE, geometry, OBJECTS * [outline("constant", SIDE, geometry)], D)
    )
    every, start = opened(place), objects._HEADER.size
    begin, cpu = perf_counter(), process_time()
    for some in pages(range(photographs), 100):
        made = list[Item]()
        for number in some:
            near_RD = vectors_ND[random.choice(photographs, OBJECTS)]
            near_RD = near_RD + 0.03 * random.standard_normal(near_RD.shape, np.float32)
            near_RD /= np.linalg.norm(near_RD, axis=1, keepdims=True)
            packed[start : start + 2 * near_RD.size] = near_RD.astype("<f2").tobytes()
            made.append(item(number, vectors_ND[number], bytes(packed)))
        every.add("objects", DTYPE, made, Settings(max_collection_objects=10**9))
    took, cpu = perf_counter() - begin, process_time() - cpu
    table.row(
        f"add {photographs:,} photographs with {OBJECTS} objects each",
        f"{took:,.0f} s",
        f"{cpu:,.0f} s",
    )
    taken = work(every, lambda: np.array([perf_counter(), process_time()]))
    table.row("index of objects", f"{taken[0]:,.1f} s", f"{taken[1]:,.1f} s")
    pets = every.get("objects")
    pets.search_objects(Query(query_QD[0], 10))
    table.calls(
        "search for objects", lambda one: pets.search_objects(Query(one, 10)), query_QD[:SMALL]
    )
    part = {"hundredth": "7"}
    table.calls(
        "search for objects, filter of 1 %",
        lambda one: pets.search_objects(Query(one, 10, filter=part)),
        query_QD[:SMALL],
    )


@contextmanager
def bucket() -> Iterator[str]:
    """Yield the URL of a place in a bucket that answers LATENCY_S later than at once."""
    port = free_port()
    environment = {**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**16)}
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    none = subprocess.DEVNULL
    with (
        subprocess.Popen(command, stdout=none, stderr=none, env=environment) as server,
        relay.running(port) as relayed,
    ):
        while True:
            try:
                urlopen(Request(f"http://127.0.0.1:{port}/bucket", method="PUT"))
                break
            except URLError:
                sleep(0.1)
        relayed.delay_s = LATENCY_S
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relayed.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        try:
            yield "s3://bucket/index"
        finally:
            server.kill()


@contextmanager
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="samclip-collection-") as place:
        yield place


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collection", description=__doc__)
    parser.add_argument("count", type=int, help="vectors")
    parser.add_argument("--together", type=int, default=TOGETHER, help="items per addition (1000)")
    parser.add_argument("--photographs", type=int, default=0, help="with objects (none)")
    parser.add_argument("--bucket", action="store_true", help="in a bucket, not in a folder")
    args = parser.parse_args(argv)
    with bucket() if args.bucket else folder() as place:
        where = "bucket" if args.bucket else "folder"
        table = Table(f"{args.count:,} in a {where}, load {os.getloadavg()[0]:.0f}")
        if args.count:
            measure(table, place, args.count, args.together)
        if args.photographs:
            of_objects(table, place, args.photographs)
        if not args.bucket:
            size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
            table.row("disk, old versions of ten minutes included", f"{size / 2**20:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
