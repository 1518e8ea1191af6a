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

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    @property
    def seconds(self) -> float:
        """The length of one measurement in one round."""
        return 1.0 if self.quick else 3.0

    def log(self, message: str) -> None:
        print(f"  {message}", flush=True)

    @property
    def dtype(self) -> str:
        """The encoder's precision in everything compared, chosen as the service does."""
        return Settings().dtype

    @cached_property
    def load(self) -> Callable[[Job], Outcome]:
        return self.stack.enter_context(generator())
