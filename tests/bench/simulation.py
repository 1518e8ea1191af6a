"""One machine with a whole service on it, as a discrete-event simulation.

Cores are shared by whatever runs, in proportion to its threads, as the system's scheduler does; but
what works on all cores in step, as one image or one click alone does, is as slow as its slowest
thread. New images are decoded, wait for the encoder, and go through it in batches.
Clicks go to the mask decoder, which works on all cores for one, and on a core for each of several.
Everything else that a request costs is work of one thread around them. What the service takes while
nobody asks is taken from the cores.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import simpy

from services.plan import Costs
from services.settings import Settings
from tests.bench.load import arrivals

MAX_BATCH: int = Settings.model_fields["max_batch_size"].default
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
        self._env = env
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
        running = _Running(core_seconds, threads, in_step, self._env.event())
        self._running.append(running)
        self._env.process(self._next_end())
        return running.done

    def _rate(self, one: _Running) -> float:
        """Core-seconds of it that are done in a second."""
        threads = sum(each.threads for each in self._running)
        if one.in_step:  # its slowest thread shares a core with that many
            threads = one.threads * (1 + ceil((threads - one.threads) / one.threads))
        return one.threads * min(1.0, self._cores / threads)

    def _advance(self) -> None:
        passed = self._env.now - self._since
        for one in self._running:
            done_s = passed * self._rate(one)
            one.left_s -= done_s
            self.busy_s += done_s
        self._since = self._env.now

    def _next_end(self) -> Steps:
        self._changes += 1
        change = self._changes
        ends = min((one.left_s / self._rate(one) for one in self._running), default=0.0)
        yield self._env.timeout(max(0.0, ends))
        if change != self._changes:
            return  # something has begun or ended meanwhile, and looks ahead itself
        self._advance()
        for one in [one for one in self._running if one.left_s < 1e-9]:
            self._running.remove(one)
            one.done.succeed()
        if self._running:
            self._env.process(self._next_end())


@dataclass
class Machine:
    """Latencies in seconds, of those that were answered."""

    env: simpy.Environment
    costs: Costs
    new_s: list[float] = field(default_factory=list)
    click_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = self.costs.cores - self.costs.unasked_cores
        self.processor = Processor(self.env, self._free)
        self._encoder = simpy.Store(self.env)
        self._decoder = simpy.Store(self.env)
        self.env.process(self._batches(self._encoder, MAX_BATCH, self._encode))
        self.env.process(self._batches(self._decoder, CLICK_BATCH, self._decode_masks))

    def new_image(self) -> Steps:
        """One request from its arrival to its answer."""
        began, costs = self.env.now, self.costs
        encoding = self._batch_s(MAX_BATCH) * self._free
        around = max(self._own(costs.new_image_cpu_s) - costs.decode_s - encoding, 0.0)
        yield self.processor.work(around / 2)
        yield self.processor.work(costs.decode_s)
        yield from self._through(self._encoder)
        yield self.processor.work(around / 2)
        self.new_s.append(self.env.now - began)

    def click(self) -> Steps:
        began = self.env.now
        around = max(self._own(self.costs.click_cpu_s) - self.costs.mask_on_one_core_s, 0.0)
        yield self.processor.work(around / 2)
        yield from self._through(self._decoder)
        yield self.processor.work(around / 2)
        self.click_s.append(self.env.now - began)

    def _own(self, cpu_s: float) -> float:
        """Of a request's core-seconds, without what would have been taken anyway."""
        return cpu_s * self._free / self.costs.cores

    def _through(self, queue: simpy.Store) -> Steps:
        done = self.env.event()
        yield queue.put(done)
        yield done

    def _batches(self, queue: simpy.Store, most: int, run: Any) -> Steps:
        while True:
            batch = [(yield queue.get())]
            size = min(most, len(batch) + len(queue.items))
            while len(batch) < size:
                batch.append((yield queue.get()))
            yield run(size)
            for done in batch:
                done.succeed()

    def _encode(self, size: int) -> simpy.Event:
        work_s = size * self._batch_s(size) * self._free
        return self.processor.work(work_s, self.costs.cores, in_step=size == 1)

    def _decode_masks(self, size: int) -> simpy.Event:
        cores = self.costs.cores
        if size == 1:
            return self.processor.work(self.costs.mask_s * self._free, cores, in_step=True)
        return self.processor.work(size * self.costs.mask_on_one_core_s, min(size, cores))

    def _batch_s(self, size: int) -> float:
        """Of each image in a batch, between those that were measured."""
        costs = self.costs
        times = {1: costs.encode_s, 8: costs.encode_of_8_s}
        if 1 < costs.cores < 8:
            times[costs.cores] = costs.encode_on_each_core_s
        sizes = sorted(times)
        return float(np.interp(np.log2(size), np.log2(sizes), [times[n] for n in sizes]))


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
