"""``python -m benchmarks.retrieval``: recall and latency of both retrieval engines.

The vectors are synthetic, with the width of the ``edge`` checkpoint: uniform noise, the hardest
case, and clusters, like photographs of a few hundred subjects. Recall@10 is the share of the ten
nearest vectors of an exact search that an engine finds.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.index import Collection, Collections, Item
from services.retrieval.query import Query
from services.retrieval.vector_sets import VectorSets, connect
from tests import redis_server

WIDTH, CLUSTERS, SPREAD = 384, 300, 0.7
BATCH = 500


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval", description=__doc__.replace("``", "")
    )
    parser.add_argument("--vectors", type=int, default=20_000, help="(20000)")
    parser.add_argument("--queries", type=int, default=200, help="(200)")
    args = parser.parse_args(argv)
    print(f"{'':20}{'recall@10':>10}{'same ids':>10}{'insert':>9}{'search':>9}{'filtered':>9}  ms")
    for kind, spread in (("clusters", SPREAD), ("uniform", None)):
        vectors_ND = make(args.vectors + args.queries, spread)
        stored_ND, queries_QD = vectors_ND[: args.vectors], vectors_ND[args.vectors :]
        nearest_Q10 = np.argsort(-(queries_QD @ stored_ND.T), axis=1)[:, :10]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            for name, engine in engines(Path(folder), stack):
                row = measure(
                    engine.get_or_make("bench", "float32"), stored_ND, queries_QD, nearest_Q10
                )
                print(f"{kind + ', ' + name:20}" + row, flush=True)
    return 0


def make(count: int, spread: float | None) -> np.ndarray:
    """Return float32 N×D, rows of length 1, around cluster centres or uniform (None)."""
    random = np.random.default_rng(0)
    vectors_ND = random.normal(size=(count, WIDTH)).astype(np.float32)
    if spread is not None:
        centres_CD = random.normal(size=(CLUSTERS, WIDTH)).astype(np.float32)
        vectors_ND = centres_CD[random.integers(0, CLUSTERS, count)] + spread * vectors_ND
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def engines(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Collections]]:
    yield "embedded", EmbeddedCollections(folder / "index", "m" * 64, WIDTH)
    server = stack.enter_context(redis_server.running(folder))
    yield "redis", VectorSets(connect(server.url), "m" * 64, WIDTH)


def measure(
    found: Collection, stored_ND: np.ndarray, queries_QD: np.ndarray, nearest_Q10: np.ndarray
) -> str:
    begin = time.perf_counter()
    for start in tqdm(range(0, len(stored_ND), BATCH), desc="insert", leave=False):
        rows = range(start, min(start + BATCH, len(stored_ND)))
        found.upsert([Item(str(n), stored_ND[n], {"half": str(n % 2)}) for n in rows])
    inserted = time.perf_counter()
    answers = [found.search(Query(query_D, 10)) for query_D in queries_QD]
    searched = time.perf_counter()
    filtered_QD = queries_QD[:10]
    for query_D in filtered_QD:
        found.search(Query(query_D, 10, filter={"half": "1"}))
    filtered = time.perf_counter()
    hits = [
        len({int(hit.id) for hit in answer} & set(nearest_10.tolist()))
        for answer, nearest_10 in zip(answers, nearest_Q10, strict=True)
    ]
    times = (
        (inserted - begin) / len(stored_ND),
        (searched - inserted) / len(queries_QD),
        (filtered - searched) / len(filtered_QD),
    )
    whole = np.mean(np.array(hits) == 10)
    row = f"{np.mean(hits) / 10:10.4f}{whole:10.3f}"
    return row + "".join(f"{1000 * seconds:9.2f}" for seconds in times)


if __name__ == "__main__":
    raise SystemExit(main())
