"""Engines for collections: ``python -m benchmarks.collection_engines COUNT ENGINE…``.

Prints a line of JSON per engine: bytes in memory and on disk, seconds to open, vectors added per
second, milliseconds per search, and recall of the ten nearest against a comparison of all vectors.
Every search asks for WALK hits, as the service does; compressed ones are ranked again by float32.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from usearch.index import Index

from services.retrieval.embedded import EmbeddedCollections
from services.retrieval.engine import open_index
from services.retrieval.index import Item
from services.retrieval.query import WALK, Query
from services.settings import Settings
from tests import redis_server

D, QUERIES, K, PAGE = 512, 200, 10, 1000
Vectors = NDArray[np.float32]
Search = Callable[[Vectors], NDArray[np.int64]]


def embeddings(count: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return vectors, N×D, and queries: 1,000 clusters of unequal sizes, on a falling spectrum.

    The variance of dimension i falls as 1/i, a common mean gives unrelated vectors a cosine of
    about 0.5, and members of a cluster have one of about 0.8, as images do in CLIP's space.
    """
    random = np.random.default_rng(seed)
    spread_D = (np.arange(1, D + 1) ** -0.5).astype(np.float32)
    spread_D /= np.linalg.norm(spread_D)
    centre_CD = random.normal(size=(1000, D)).astype(np.float32) * spread_D
    mean_D = random.normal(size=D).astype(np.float32) / np.sqrt(D) * 1.2
    share_C = random.pareto(1.5, 1000) + 0.1
    vectors_ND = np.empty((count + QUERIES, D), np.float32)
    for start in range(0, len(vectors_ND), 50_000):
        part_ND = vectors_ND[start : start + 50_000]
        of_N = random.choice(1000, len(part_ND), p=share_C / share_C.sum())
        noise_ND = random.standard_normal(part_ND.shape, np.float32) * spread_D
        part_ND[:] = mean_D + centre_CD[of_N] * 0.9 + noise_ND * 0.8
        part_ND /= np.linalg.norm(part_ND, axis=1, keepdims=True)
    return vectors_ND[:count], vectors_ND[count:]


def nearest(vectors_ND: Vectors, query_QD: Vectors) -> NDArray[np.int64]:
    """Return the rows of the nearest, Q×K."""
    return np.stack([np.argsort(-(vectors_ND @ query_D))[:K] for query_D in query_QD])


def searched(search: Search, query_QD: Vectors, expected_QK: NDArray[np.int64]) -> dict[str, float]:
    for query_D in query_QD[:20]:
        search(query_D)
    times, found = [], 0
    for query_D, expected_K in zip(query_QD, expected_QK, strict=True):
        begin = time.perf_counter()
        hits_K = search(query_D)[:K]
        times.append(1e3 * (time.perf_counter() - begin))
        found += len(np.intersect1d(hits_K, expected_K))
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": p50, "p95_ms": p95, "recall": found / expected_QK.size}


def ranked(vectors_ND: Vectors, keys: NDArray[np.int64], query_D: Vectors) -> NDArray[np.int64]:
    return keys[np.argsort(-(vectors_ND[keys] @ query_D))]


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def usearch(dtype: str, vectors_ND: Vectors, *asked: NDArray) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        file, index = Path(folder, "graph"), Index(ndim=D, metric="cos", dtype=dtype)
        before, begin = rss(), time.perf_counter()
        for start in range(0, len(vectors_ND), PAGE):
            rows_N = np.arange(start, min(start + PAGE, len(vectors_ND)))
            index.add(rows_N, vectors_ND[rows_N], threads=1)
        seconds, memory = time.perf_counter() - begin, rss() - before
        index.save(str(file))
        for way in ("loaded", "mapped"):
            del index
            before, begin = rss(), time.perf_counter()
            index = Index.restore(str(file), view=way == "mapped")
            opened, memory = time.perf_counter() - begin, rss() - before if way == "loaded" else 0

            def search(query_D: Vectors, index: Index = index) -> NDArray[np.int64]:
                keys = index.search(query_D, WALK).keys.astype(np.int64)
                return keys if dtype == "f32" else ranked(vectors_ND, keys, query_D)

            yield {
                "engine": f"usearch {dtype}, {way}",
                "added_per_s": len(vectors_ND) / seconds,
                "memory": memory,
                "disk": file.stat().st_size,
                "open_s": opened,
                **searched(search, *asked),
            }


def files(way: str, vectors_ND: Vectors, *asked: NDArray) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory(dir=way or None) as folder:
        place = Path(folder)
        collections = EmbeddedCollections(place, "m" * 64, D)
        held = collections.get_or_make("pets", "float32")
        begin, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(vectors_ND), 1024):
            rows = range(start, min(start + 1024, len(vectors_ND)))
            held.upsert([Item(f"{row:08}", vectors_ND[row], {"row": f"{row}"}) for row in rows])
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu

        def search(query_D: Vectors) -> NDArray[np.int64]:
            hits = collections.get("pets").search(Query(query_D, K))
            return np.array([int(hit.id) for hit in hits])

        rates = {
            "stored_per_s": len(vectors_ND) / seconds,
            "stored_per_cpu_s": len(vectors_ND) / cpu,
        }
        few = [each[:20] for each in asked]
        yield {"engine": "files, not built", **rates, **searched(search, *few)}
        begin = time.perf_counter()
        while collections.build():
            pass
        built = len(vectors_ND) / (time.perf_counter() - begin)
        collections.close()
        before, begin = rss(), time.perf_counter()
        collections = EmbeddedCollections(place, "m" * 64, D)
        collections.get("pets")
        opened, memory = time.perf_counter() - begin, rss() - before
        yield {
            "engine": "files, built",
            "added_per_s": built,
            "memory": memory,
            "disk": {file.suffix: file.stat().st_size for file in place.iterdir()},
            "open_s": opened,
            **searched(search, *asked),
        }
        collections.close()


def redis_set(option: str, vectors_ND: Vectors, *asked: NDArray) -> Iterator[dict[str, object]]:
    import redis

    with tempfile.TemporaryDirectory() as folder, redis_server.running(Path(folder)) as server:
        client = redis.Redis(port=server.port)
        before, begin = client.info("memory")["used_memory"], time.perf_counter()
        for start in range(0, len(vectors_ND), PAGE):
            with client.pipeline(transaction=False) as pipe:
                for row in range(start, min(start + PAGE, len(vectors_ND))):
                    vector = vectors_ND[row].tobytes()
                    pipe.execute_command("VADD", "v", "FP32", vector, str(row), option)
                pipe.execute()
        seconds = time.perf_counter() - begin
        memory = client.info("memory")["used_memory"] - before
        client.save()
        server.kill()
        begin = time.perf_counter()
        server.start()
        while client.info("persistence")["loading"]:
            time.sleep(0.01)
        opened = time.perf_counter() - begin

        def search(query_D: Vectors) -> NDArray[np.int64]:
            command = "VSIM", "v", "FP32", query_D.tobytes(), "COUNT", WALK, "EF", WALK
            keys = np.array([*map(int, client.execute_command(*command))])
            return keys if option == "NOQUANT" else ranked(vectors_ND, keys, query_D)

        yield {
            "engine": f"Redis {option}",
            "added_per_s": len(vectors_ND) / seconds,
            "memory": memory,
            "disk": Path(folder, "dump.rdb").stat().st_size,
            "open_s": opened,
            **searched(search, *asked),
        }


def shards(count: str, vectors_ND: Vectors, *asked: NDArray) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder, redis_server.cluster(Path(folder)) as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        made = Settings(redis_url=url, collection_shards=int(count), index_dir=Path(folder, "-"))
        with closing(open_index(made, "m" * 64, D)) as collections:
            held = collections.get_or_make("pets", "float32")
            begin = time.perf_counter()
            for start in range(0, len(vectors_ND), PAGE):
                rows = range(start, min(start + PAGE, len(vectors_ND)))
                held.upsert([Item(f"{row:08}", vectors_ND[row], {}) for row in rows])
            seconds = time.perf_counter() - begin

            def search(query_D: Vectors) -> NDArray[np.int64]:
                hits = collections.get("pets").search(Query(query_D, K))
                return np.array([int(hit.id) for hit in hits])

            processes = [psutil.Process(server.process.pid) for server in servers if server.process]
            yield {
                "engine": f"Redis Cluster, {count} shards on {len(servers)} servers",
                "added_per_s": len(vectors_ND) / seconds,
                "memory": sum(process.memory_info().rss for process in processes),
                **searched(search, *asked),
            }


def lance(kind: str, vectors_ND: Vectors, *asked: NDArray) -> Iterator[dict[str, object]]:
    import lancedb
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as folder:
        flat = pa.array(vectors_ND.reshape(-1))
        data = pa.table(
            {
                "row": np.arange(len(vectors_ND)),
                "vector": pa.FixedSizeListArray.from_arrays(flat, D),
            }
        )
        begin = time.perf_counter()
        table = lancedb.connect(folder).create_table("v", data)
        stored = time.perf_counter() - begin
        del data, flat
        partitions = max(1, len(vectors_ND) // (4096 if kind == "IVF_PQ" else 1_000_000))
        table.create_index(metric="cosine", index_type=kind, num_partitions=partitions)
        seconds = time.perf_counter() - begin
        before, begin = rss(), time.perf_counter()
        table = lancedb.connect(folder).open_table("v")
        opened = time.perf_counter() - begin

        def search(query_D: Vectors) -> NDArray[np.int64]:
            query = table.search(query_D).metric("cosine").limit(K).select(["row"])
            query = query.refine_factor(WALK // K).nprobes(20)
            query = query.ef(WALK) if kind != "IVF_PQ" else query
            return np.array(query.to_arrow()["row"])

        found = searched(search, *asked)
        yield {
            "engine": f"LanceDB {kind}",
            "added_per_s": len(vectors_ND) / seconds,
            "stored_per_s": len(vectors_ND) / stored,
            "memory": rss() - before,
            "disk": sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()),
            "open_s": opened,
            **found,
        }


def main() -> None:
    count = int(sys.argv[1])
    vectors_ND, query_QD = embeddings(count)
    expected_QK = nearest(vectors_ND, query_QD)
    for name in sys.argv[2:]:
        kind, _, option = name.partition(":")
        engine = {
            "files": files,
            "usearch": usearch,
            "redis": redis_set,
            "shards": shards,
            "lance": lance,
        }[kind]
        for line in engine(option, vectors_ND, query_QD, expected_QK):
            load = os.getloadavg()[0]
            print(json.dumps({"count": count, **line, "load": load}), flush=True)


if __name__ == "__main__":
    main()
