"""One machine with a whole service on it, as a discrete-event simulation.

Cores are shared by whatever runs, in proportion to its threads, as the system's scheduler does; but
what works on all cores in step, as one image or one click alone does, is as slow as its slowest
thread. New images are decoded, and go through the encoder in batches; clicks go through the mask
decoder. Everything else that a request costs is work of one thread around them. What the service
takes while nobody asks is taken from the cores.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import simpy

from samclip_core.model import PICTURES_PER_CORE
from samclip_core.sam_head import PROMPTS_PER_CALL_ON_CPU
from services.batcher import CROWDED, LATEST, batches_at_once
from services.plan import Costs
from services.settings import Settings
from tests.bench.load import arrivals

MAX_BATCH: int = Settings.model_fields["max_batch_size"].default
WAIT_S: float = Settings.model_fields["batch_wait_ms"].default / 1000
CLICK_BATCH: int = Settings.model_fields["max_prompt_batch"].default
Steps = Generator[simpy.Event, Any, None]


@dataclass
class _Running:
    left_s: float  # core-seconds
    threads: int
    in_step: bool
    done: simpy.Event


class Processor:
    """``cores``, the last of them perhaps a part of one, that all running work shares."""

    def __init__(self, env: simpy.Environment, cores: float):
        self.env = env
        self._cores = cores
        self._running: list[_Running] = []
        self._since = 0.0
        self._changes = 0
        self.busy_s = 0.0  # core-seconds until the latest change

    def work(self, core_seconds: float, threads: int = 1, in_step: bool = False) -> simpy.Event:
        """An event for the end of so much work on at most so many cores.

        ``in_step``: its threads wait for each other, each on a core of its own.
        """
        self._advance()
        running = _Running(core_seconds, threads, in_step, self.env.event())
        self._running.append(running)
        self.env.process(self._next_end())
        return running.done

    def _rate(self, one: _Running) -> float:
        """Core-seconds of it that are done in a second."""
        threads = sum(each.threads for each in self._running)
        if one.in_step:  # its slowest thread shares a core with that many
            threads = one.threads * (1 + ceil((threads - one.threads) / one.threads))
        return one.threads * min(1.0, self._cores / threads)

    def _advance(self) -> None:
        passed = self.env.now - self._since
        for one in self._running:
            done_s = passed * self._rate(one)
            one.left_s -= done_s
            self.busy_s += done_s
        self._since = self.env.now

    def _next_end(self) -> Steps:
        self._changes += 1
        change = self._changes
        ends = min((one.left_s / self._rate(one) for one in self._running), default=0.0)
        yield self.env.timeout(max(0.0, ends))
        if change != self._changes:
            return  # something has begun or ended meanwhile, and looks ahead itself
        self._advance()
        for one in [one for one in self._running if one.left_s < 1e-9]:
            self._running.remove(one)
            one.done.succeed()
        if self._running:
            self.env.process(self._next_end())


class Device:
    """What is worked on in batches: filled as ``services.batcher`` fills them, shared out as
    ``samclip_core.cores`` does.

    One alone takes ``alone_s`` core-seconds on all cores in step, each of ``n`` that a core takes
    together ``on_core(n)``; ``part`` tells how many a core takes of a batch, for cores that are
    free. ``coming`` is how many are being prepared; a batch waits for them.
    """

    def __init__(
        self,
        processor: Processor,
        cores: int,
        most: int,
        alone_s: float,
        on_core: Callable[[int], float],
        part: Callable[[int, int], int],
    ):
        self._env, self._processor, self._cores = processor.env, processor, cores
        self._most, self._alone_s, self._on_core, self._part = most, alone_s, on_core, part
        self._slots = simpy.Resource(self._env, cores)
        self._queue: list[tuple[float, simpy.Event]] = []
        self._running: list[simpy.Process] = []
        self._parts = 0
        self._company = 0.0
        self._changed = self._env.event()
        self.coming = 0
        self._env.process(self._work())

    @contextmanager
    def announced(self) -> Iterator[None]:
        """One more that is worth waiting for."""
        self.coming += 1
        yield
        self.coming -= 1
        self._tell()

    def through(self) -> Steps:
        """One of what is worked on, from its arrival to its answer."""
        running = any(batch.is_alive for batch in self._running)
        self._company += LATEST * (bool(self._queue or running or self.coming) - self._company)
        done = self._env.event()
        self._queue.append((self._env.now, done))
        self._tell()
        yield done

    def _tell(self) -> None:
        self._changed.succeed()
        self._changed = self._env.event()

    def _work(self) -> Steps:
        while True:
            yield from self._filled()
            batch, self._queue = self._queue[: self._most], self._queue[self._most :]
            whole = len(batch) == 1 and self._company <= CROWDED
            self._running = [other for other in self._running if other.is_alive]
            self._running.append(self._env.process(self._run([one for _, one in batch], whole)))
            if whole or len(self._running) == batches_at_once("cpu"):
                yield simpy.AnyOf(self._env, self._running)

    def _filled(self) -> Steps:
        while not self._queue:
            yield self._changed
        until = self._queue[0][0] + WAIT_S
        while len(self._queue) < self._most and self.coming and self._env.now < until:
            yield self._changed | self._env.timeout(until - self._env.now)

    def _run(self, batch: list[simpy.Event], whole: bool) -> Steps:
        if whole:
            yield self._processor.work(self._alone_s, self._cores, in_step=True)
        else:
            size = self._part(len(batch), max(1, self._cores - self._parts))
            sizes = [min(size, len(batch) - first) for first in range(0, len(batch), size)]
            self._parts += len(sizes)
            threads = max(1, self._cores // max(2, self._parts))
            yield simpy.AllOf(self._env, [self._env.process(self._on(n, threads)) for n in sizes])
            self._parts -= len(sizes)
        for done in batch:
            done.succeed()

    def _on(self, size: int, threads: int) -> Steps:
        with self._slots.request() as core:
            yield core
            yield self._processor.work(size * self._on_core(size), threads)


@dataclass
class Machine:
    """Latencies in seconds, of those that were answered."""

    env: simpy.Environment
    costs: Costs
    new_s: list[float] = field(default_factory=list)
    click_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        costs = self.costs
        self._free = costs.cores - costs.unasked_cores
        self.processor = Processor(self.env, self._free)
        self._encoder = Device(
            self.processor,
            costs.cores,
            MAX_BATCH,
            costs.encode_s * self._free,
            self._encode_s,
            lambda images, free: min(ceil(images / free), PICTURES_PER_CORE),
        )
        self._decoder = Device(
            self.processor,
            costs.cores,
            CLICK_BATCH,
            costs.mask_s * self._free,
            lambda clicks: costs.mask_on_one_core_s,
            lambda clicks, free: max(1, min(clicks // costs.cores, PROMPTS_PER_CALL_ON_CPU)),
        )

    def new_image(self) -> Steps:
        """One request from its arrival to its answer."""
        began, costs = self.env.now, self.costs
        encoding = costs.encode_of_8_s * self._free
        around = max(self._own(costs.new_image_cpu_s) - costs.decode_s - encoding, 0.0)
        yield self.processor.work(around / 2)
        with self._encoder.announced():
            yield self.processor.work(costs.decode_s)
        yield from self._encoder.through()
        yield self.processor.work(around / 2)
        self.new_s.append(self.env.now - began)

    def click(self) -> Steps:
        began = self.env.now
        around = max(self._own(self.costs.click_cpu_s) - self.costs.mask_on_one_core_s, 0.0)
        yield self.processor.work(around / 2)
        yield from self._decoder.through()
        yield self.processor.work(around / 2)
        self.click_s.append(self.env.now - began)

    def _own(self, cpu_s: float) -> float:
        """Of a request's core-seconds, without what would have been taken anyway."""
        return cpu_s * self._free / self.costs.cores

    def _encode_s(self, together: int) -> float:
        """Core-seconds of each image that a core takes together, between those measured."""
        costs = self.costs
        of_8 = min(ceil(8 / costs.cores), PICTURES_PER_CORE)
        one_s = costs.encode_s if costs.cores == 1 else costs.encode_on_each_core_s
        sizes, times = ([1, of_8], [one_s, costs.encode_of_8_s]) if of_8 > 1 else ([1], [one_s])
        return float(np.interp(np.log2(together), np.log2(sizes), times)) * self._free


def closed(costs: Costs, clients: int, seconds: float, kind: str = "new") -> float:
    """Answers a second to clients that ask again when they are answered."""
    env = simpy.Environment()
    machine = Machine(env, costs)
    one = machine.new_image if kind == "new" else machine.click

    def client() -> Iterator[simpy.Event]:
        while True:
            yield env.process(one())

    for _ in range(clients):
        env.process(client())
    env.run(seconds)
    return len(machine.new_s if kind == "new" else machine.click_s) / seconds


def open_loop(costs: Costs, new_per_s: float, clicks_per_s: float, seconds: float) -> Machine:
    """Poisson arrivals of both kinds for so long; what is under way then is not counted."""
    env = simpy.Environment()
    machine = Machine(env, costs)

    def come(rate: float, one: Any, seed: int) -> Steps:
        for at in arrivals(rate, seconds, seed) if rate else ():
            yield env.timeout(at - env.now)
            env.process(one())

    env.process(come(new_per_s, machine.new_image, 0))
    env.process(come(clicks_per_s, machine.click, 1))
    env.run(seconds)
    return machine
