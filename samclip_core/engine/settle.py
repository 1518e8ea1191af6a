"""Choose runtimes and precisions in a process of its own, before a service starts others."""

import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samclip_core.engine import load
from samclip_core.engine.base import PARTS, DtypeChoice, Network
from samclip_core.engine.choice import Choice, Choices
from samclip_core.engine.processor import busy
from samclip_core.io import checkpoint

logger = logging.getLogger(__name__)


def settle(
    directory: Path,
    device: str,
    dtype: DtypeChoice,
    threads: int,
    folder: Path,
    again: bool = False,
) -> None:
    """Measure what has not been measured on a quiet machine; ``again`` measures everything.

    A choice that was disturbed is left while the machine is busy. Another call for this folder
    waits for this one, and then finds its choices. Does nothing where nothing is chosen or stored.
    Errors are left to the load that follows. Raises CheckpointError.
    """
    if device != "cpu" or not checkpoint.graphs(directory):
        return
    choices = Choices(checkpoint.identity(directory), dtype, folder, threads)
    with choices.locked():
        missing = [
            part
            for part, choice in known(directory, choices).items()
            if again or choice is None or not (choice.quiet or (choice.holds and busy()))
        ]
        if not missing or not choices.usable:
            return
        for part in missing:
            choices.forget(part)
        given = [str(directory.absolute()), dtype, str(threads), str(folder), *missing]
        # -P: a file in the current directory may have the name of a module.
        run = subprocess.run(
            [sys.executable, "-P", "-m", __name__, *given], capture_output=True, text=True
        )
    if run.returncode:
        reason = run.stderr.strip().rpartition("\n")[2]
        logger.warning("the runtimes could not be compared before the start: %s", reason)


def known(directory: Path, choices: Choices) -> Mapping[Network, Choice | None]:
    """Return what was chosen for each part that the checkpoint has."""
    masks = checkpoint.read_config(directory).masks
    return {part: choices.choice(part) for part in PARTS if masks or part != "mask_decoder"}


def main(directory: str, dtype: Any, threads: str, folder: str, *parts: Any) -> None:
    """Load these parts of a checkpoint, which chooses."""
    load(Path(directory), dtype=dtype, parts=parts, cache_dir=Path(folder), threads=int(threads))


if __name__ == "__main__":
    main(*sys.argv[1:])
