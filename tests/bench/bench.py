"""What the parts of the benchmark share: a checkpoint, a service and a load generator, each made
when it is first needed.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from services.settings import Settings
from tests.bench.load import Job, Outcome, generator
from tests.bench.service import Running, running

if TYPE_CHECKING:
    from samclip_core.model import Dtype, SamClip


@dataclass
class Bench:
    """``stack`` ends what was started."""

    directory: Path  # of the checkpoint
    out: Path
    stack: ExitStack
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Of one measurement under load, in one round."""
        return 1.0 if self.quick else 3.0

    def log(self, message: str) -> None:
        print(message, flush=True)

    @cached_property
    def dtype(self) -> "Dtype":
        """Of the encoder, as the service chooses it: whatever is compared with it has the same."""
        return Settings().dtype

    @cached_property
    def model(self) -> "SamClip":
        from samclip_core import SamClip  # brings in torch

        return SamClip.load(self.directory, dtype=self.dtype)

    @cached_property
    def service(self) -> Running:
        self.log("starting a service …")
        return self.stack.enter_context(running(self.directory))

    @cached_property
    def load(self) -> Callable[[Job], Outcome]:
        return self.stack.enter_context(generator())

    def ask(self, transport: str, kind: str, images: str, **more: object) -> Outcome:
        """Put load on the service."""
        values = {"seconds": self.seconds, "address": getattr(self.service, transport)} | more
        return self.load(Job(transport, kind=kind, images=images, **values))
