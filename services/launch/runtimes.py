"""The runtime and precision of each network: chosen before a start, and shown by doctor."""

import time
from collections.abc import Iterator

from samclip_core.engine.base import runs_graphs
from samclip_core.engine.choice import Choice, Choices
from samclip_core.engine.settle import known, settle
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from services.launch.checks import Finding
from services.settings import Settings

AGAIN = "samclip doctor --measure, when nothing else runs"


def choose(settings: Settings, again: bool = False) -> None:
    """Measure what has not been measured on a quiet machine, or everything ``again``.

    Raises CheckpointError.
    """
    settle(
        checkpoint.resolve(settings.checkpoint),
        settings.device,
        settings.dtype,
        settings.threads,
        settings.compiled_cache_dir,
        again,
    )


def findings(settings: Settings) -> Iterator[Finding]:
    """Yield what was chosen for each network; nothing where PyTorch runs them."""
    try:
        directory = checkpoint.resolve(settings.checkpoint)
        if not runs_graphs(settings.device) or not checkpoint.graphs(directory):
            return
        choices = Choices(
            checkpoint.identity(directory),
            settings.dtype,
            settings.compiled_cache_dir,
            settings.threads,
            device=settings.device,
        )
        for part, choice in known(directory, choices).items():
            yield _finding(part.replace("_", " "), choice)
    except CheckpointError:  # which another check names
        return


def _finding(part: str, choice: Choice | None) -> Finding:
    if choice is None:
        return Finding("runtime", "ok", f"{part}: measured at the next start")
    times = ", ".join(f"{name} {ms:g} ms" for name, ms in choice.measured_ms.items())
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(choice.at))
    how = f"{times}; {at}, {'quiet' if choice.quiet else 'busy'}" if times else "no other is here"
    found = f"{part}: {choice.chosen} ({how})"
    if choice.quiet:
        return Finding("runtime", "ok", found)
    return Finding("runtime", "note", f"{found}: a start on an idle machine measures again", AGAIN)
