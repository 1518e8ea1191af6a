"""What a measurement has chosen for a checkpoint, beside its compiled graphs on disk."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from samclip_core.engine.base import CPU, Asked, EngineName, Part
from samclip_core.engine.disk import DiskCache
from samclip_core.engine.processor import cores, instructions, name

FORMAT = "4"
"""Version of the files on disk. Increment it when what a runtime does to a graph changes."""
DISTURBED_S = 86400
"""How long a choice holds that was measured on a busy machine: not every load measures again."""


@dataclass(frozen=True)
class Choice:
    """The name of a part's fastest variant, and how it was found.

    measured_ms: least time of each variant; empty if there was only one. quiet: whether no other
    program disturbed. at: seconds since 1970.
    """

    chosen: str
    measured_ms: Mapping[str, float]
    quiet: bool
    at: float = field(default_factory=time.time)

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return the choice that ``asdict`` has written. Raises various errors for other values."""
        times = {str(name): float(ms) for name, ms in value["measured_ms"].items()}
        return cls(str(value["chosen"]), times, value["quiet"] is True, float(value["at"]))

    @property
    def holds(self) -> bool:
        """Whether a load may use it."""
        return self.quiet or 0 <= time.time() - self.at < DISTURBED_S


class Choices(DiskCache):
    """Choices and compiled graphs of one checkpoint on this machine.

    ``identity`` is that of the checkpoint with its graphs; the rest are parameters of the engine.
    """

    def __init__(
        self,
        identity: str,
        dtype: Asked,
        folder: Path | None,
        threads: int,
        runtime: EngineName = "auto",
        device: str = CPU,
    ) -> None:
        device = device.upper()
        # CPUs of the same name can differ in their instructions.
        machine = [name(), *sorted(instructions()), str(cores())]
        machine.append(os.environ.get("ONEDNN_MAX_CPU_ISA", ""))
        if device != CPU and find_spec("openvino"):  # importing OpenVINO takes half a second
            from samclip_core.engine.with_openvino import described

            machine += described(device)
        versions = map(_version, ("openvino", "onnxruntime"))
        super().__init__(folder, FORMAT, identity, *machine, *versions, str(threads))
        self._file = f"choice-%s-{device}-{runtime}-{dtype}"

    def choice(self, part: Part) -> Choice | None:
        """Return what was chosen for a part; None if nothing was, or it cannot be read."""
        try:
            return Choice.of(self.read_json(self._file % part))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return None

    def choose(self, part: Part, choice: Choice) -> None:
        """Store a choice."""
        self.write_json(self._file % part, asdict(choice))

    def forget(self, part: Part) -> None:
        """Remove a choice, so that the next load measures."""
        self.write_json(self._file % part, None)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
