"""A progress bar with rate and time left, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for ``total`` items; yield the function that counts done ones."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(), redirect_stdout=False) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _console() -> Console:
    console = Console(stderr=True)
    if console.is_jupyter:  # which shows a line that is written again as a terminal does
        return Console(stderr=True, force_jupyter=False, force_terminal=True)
    return console
