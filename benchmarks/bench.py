"""The context of the benchmark's parts: checkpoint, baseline, length of the rounds."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.load import Job, Outcome, generator
from services.settings import Settings


@dataclass
class Bench:
    """The context of a part; ``stack`` stops its processes, ``baseline`` is an older checkout."""

    directory: Path  # of the checkpoint
    out: Path
    stack: ExitStack
    quick: bool = False
    baseline: Path | None = None

    def __post_init__(self) -> None:
        self.rounds = 1 if self.quick else 3
        self.seconds = 1.0 if self.quick else 3.0  # of one measurement in one round
        self.dtype = Settings().dtype  # of the encoder in all that is compared, as in the service

    def log(self, message: str) -> None:
        print(f"  {message}", flush=True)

    @cached_property
    def load(self) -> Callable[[Job], Outcome]:
        return self.stack.enter_context(generator())
