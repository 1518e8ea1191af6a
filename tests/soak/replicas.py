"""Two replicas that share one index, under a mixed load, while one after the other is killed.

``python -m tests.soak.replicas --minutes 10``. Each replica is a process that answers the rpcs of
collections behind gRPC. What every id has is known from what was acknowledged, so that each answer
is checked. Requests that fail are repeated at any replica, as their code says.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import numpy as np
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.zero_shot import unit
from samclip_core.config import SamClipConfig
from samclip_core.io import checkpoint
from services.request import calls
from services.retrieval import builds
from services.retrieval.app import Retrieval
from services.settings import Settings
from tests.checkout import ROOT, sources
from tests.in_process import SECRET, Caller, served
from tests.ports import free_port
from tests.tiny import make_tiny_checkpoint

AGAIN = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"}
WRITERS, READERS, OF_ONE = 4, 3, 600
"""Tasks of each kind, and ids that one task writes: together enough rows for an index."""
MOST = 40
"""Items that a request changes."""
LEAST_RECALL = 0.95
"""Of vectors that have changed since the index was checked."""


@dataclass
class Held:
    """What an id has since when: the number of its vector, 0 for none; changing: not certain."""

    number: int = 0
    since: float = 0.0
    changing: bool = False


@dataclass
class Load:
    """A load on replicas, and what was wrong with their answers."""

    callers: list[Caller]
    model: pb.ModelInfo
    dimension: int
    end: float
    held: dict[str, Held] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)

    async def ask(self, rpc: str, **fields: Any) -> Any:
        """Return an answer, of the second or a later try if a replica says that."""
        request = getattr(pb, f"{rpc}Request")(collection="pets", **fields)
        while True:
            try:
                answer = await random.choice(self.callers)(rpc, request)
            except grpc.aio.AioRpcError as error:
                self.failed[f"{rpc} {error.code().name}"] += 1
                if error.code().name not in AGAIN:
                    raise
                await asyncio.sleep(0.1)
            else:
                self.calls[rpc] += 1
                return answer

    def vector(self, id: str, number: int) -> np.ndarray:
        """Return the vector of a version of an id, near to those of its group."""
        centre_D, own_D = (
            np.random.default_rng(seed).normal(size=self.dimension)
            for seed in ([int(group(id))], [*id.encode(), number])
        )
        return unit((centre_D + 0.6 * own_D).astype(np.float32))

    def settled(self, id: str, begin: float) -> bool:
        """Return whether an id has had one value since ``begin``."""
        held = self.held[id]
        return not held.changing and held.since < begin

    def item(self, id: str) -> pb.IndexItem:
        number = self.held[id].number
        metadata = {"number": str(number), "group": group(id)}
        return pb.IndexItem(
            id=id, vector=self.vector(id, number).astype("<f4").tobytes(), metadata=metadata
        )

    async def write(self, writer: int) -> None:
        ids, number = [f"{writer} {n:04}" for n in range(OF_ONE)], 0
        self.held |= {id: Held() for id in ids}
        while monotonic() < self.end:
            first = number == 0  # all, so that there are enough for an index
            some = ids if first else random.sample(ids, random.choice((1, 1, 4, MOST)))
            number += 1
            there = sum(self.held[id].number > 0 for id in some)
            gone = not first and random.random() < 0.4
            for id in some:
                self.held[id] = Held(0 if gone else number, 0, changing=True)
            failures = self.failed.total()
            if gone:
                answer = await self.ask("Delete", ids=some)
                changed = answer.deleted
            else:
                made = [self.item(id) for id in some]
                answer = await self.ask("Index", items=made, made_by=self.model)
                changed = answer.replaced
            if failures == self.failed.total() and changed != there:
                self.wrong.append(f"a change of {there} said that there were {changed}")
            for id in some:
                self.held[id].since, self.held[id].changing = monotonic(), False

    async def read(self) -> None:
        while monotonic() < self.end:
            if not (there := [id for id, held in self.held.items() if held.number and held.since]):
                await asyncio.sleep(0.1)
                continue
            await random.choice((self.search, self.search, self.listed_by_pages))(
                random.choice(there)
            )

    async def search(self, id: str) -> None:
        """Compare a search by id, in its group or everywhere, with the vectors of all ids."""
        begin, of_group = monotonic(), random.random() < 0.5
        filter = {"group": group(id)} if of_group else {}
        if (number := self.held[id].number) == 0 or not self.settled(id, begin):
            return
        answer = await self.ask_of(id, top_k=100 if of_group else 10, filter=filter)
        if answer is None or not self.settled(id, begin):
            return
        query_D, hits = self.vector(id, number), {hit.id: hit for hit in answer.hits}
        if len(hits) != len(answer.hits):
            self.wrong.append("a search has a hit twice")
        for hit in answer.hits:
            self.check(hit.id, hit.metadata, begin)
            expected = float(self.vector(hit.id, int(hit.metadata["number"])) @ query_D)
            if abs(expected - hit.score) > 1e-3:
                self.wrong.append(f"score {hit.score} instead of {expected}")
        others = [
            other
            for other, held in self.held.items()
            if other != id and held.number and self.settled(other, begin)
        ]
        if of_group:
            lacking = {other for other in others if group(other) == group(id)} - hits.keys()
            if lacking and len(hits) < 100:
                self.wrong.append(f"a search with a filter lacks {lacking}")
            return
        least = min((hit.score for hit in answer.hits), default=-1)
        scores = {other: self.vector(other, self.held[other].number) @ query_D for other in others}
        better = [other for other, score in scores.items() if score > least + 1e-3]
        self.recall.append(1 - len({*better} - hits.keys()) / 10)

    async def ask_of(self, id: str, **fields: Any) -> Any:
        """Search by an id that may be deleted meanwhile."""
        request, begin = pb.SearchRequest(collection="pets", id=id, **fields), monotonic()
        try:
            answer = await random.choice(self.callers)("Search", request)
        except grpc.aio.AioRpcError as error:
            self.failed[f"Search {error.code().name}"] += 1
            if error.code() is not grpc.StatusCode.NOT_FOUND and error.code().name not in AGAIN:
                self.wrong.append(f"Search: {error.code().name} {error.details()}")
            if error.code() is grpc.StatusCode.NOT_FOUND and self.settled(id, begin):
                self.wrong.append(f"{id} is not found")
            return None
        self.calls["Search"] += 1
        return answer

    async def listed_by_pages(self, _: str = "") -> None:
        begin, after, listed = monotonic(), "", list[str]()
        while page := (await self.ask("ListItems", after_id=after, limit=1000)).items:
            for item in page:
                self.check(item.id, item.metadata, begin)
            listed += [item.id for item in page]
            after = listed[-1]
        if sorted({*listed}) != listed:
            self.wrong.append("a listing repeats or is not in order")
        expected = {id for id, held in self.held.items() if held.number and self.settled(id, begin)}
        if lacking := expected.difference(listed):
            self.wrong.append(f"a listing lacks {lacking}")

    def check(self, id: str, metadata: Any, begin: float) -> None:
        held = self.held[id]
        if self.settled(id, begin) and metadata["number"] != str(held.number):
            self.wrong.append(f"{id} is of {metadata['number']} instead of {held.number}")

    def report(self, kills: int) -> str:
        recall = float(np.mean(self.recall)) if self.recall else 1.0
        if recall < LEAST_RECALL:
            self.wrong.append(f"recall {recall:.3f}")
        return (
            f"{kills} kills; answers: {dict(self.calls)}; failed, and again: {dict(self.failed)}; "
            f"recall of {len(self.recall)} searches: {recall:.4f}; {len(self.wrong)} wrong: "
            f"{self.wrong[:9]}"
        )


def group(id: str) -> str:
    return str(sum(id.encode()) % 40)


class Replica:
    """A process that answers at a port until it is killed."""

    def __init__(self, place: Path, directory: Path):
        self._place, self._directory, self.port = place, directory, free_port()

    async def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{sources()}"}
        environment[calls.SECRET_VARIABLE] = SECRET
        command = [sys.executable, "-m", __spec__.name, "--replica", self._place, self._directory]
        self._process = await asyncio.create_subprocess_exec(
            *command, str(self.port), cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        await self._process.stdout.readline()

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()


async def answer(place: Path, directory: Path, port: int) -> None:
    """Be a replica."""
    builds.INDEXED, builds.FRAGMENTS, builds.UNINDEXED = 1000, 12, 200  # works all the time
    settings = Settings(checkpoint=str(directory), index_dir=place)
    async with served(Retrieval(settings), port=port):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def soak(seconds: float, kill_every_s: float, folder: Path) -> tuple[str, list[str]]:
    """Return a report, and what was wrong."""
    directory = make_tiny_checkpoint(folder / "tiny")
    config: SamClipConfig = checkpoint.read_config(directory)
    replicas = [Replica(folder / "index", directory) for _ in range(2)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(replica.start() for replica in replicas))
        for replica in replicas:
            stack.push_async_callback(replica.kill)
        callers = [Caller(replica.port) for replica in replicas]
        for caller in callers:
            stack.push_async_callback(caller.close)
        model = pb.ModelInfo(digest=checkpoint.digest(directory), dtype="float32")
        load = Load(callers, model, config.text_dim, monotonic() + seconds)
        tasks = [*map(load.write, range(WRITERS)), *(load.read() for _ in range(READERS))]
        running, kills = asyncio.gather(*tasks), 0
        while monotonic() + kill_every_s < load.end and not running.done():
            await asyncio.sleep(kill_every_s)
            await replicas[kills % 2].kill()
            kills += 1
            await replicas[(kills - 1) % 2].start()
        await running
        await load.listed_by_pages()
        (found,) = (await load.ask("Describe")).collections
        count = sum(held.number > 0 for held in load.held.values())
        if found.count != count:
            load.wrong.append(f"{found.count} items instead of {count}")
        return load.report(kills), load.wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.replicas", description=__doc__.replace("``", "")
    )
    parser.add_argument("--minutes", type=float, default=10, help="(10)")
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS", help="(60)")
    parser.add_argument("--replica", nargs=3, metavar=("PLACE", "CHECKPOINT", "PORT"))
    args = parser.parse_args(argv)
    if args.replica:
        place, directory, port = args.replica
        asyncio.run(answer(Path(place), Path(directory), int(port)))
    with tempfile.TemporaryDirectory(prefix="samclip-replicas-") as folder:
        report, wrong = asyncio.run(soak(60 * args.minutes, args.kill_every, Path(folder)))
    print(report)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
