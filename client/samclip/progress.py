"""A progress bar with rate and time left, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str, total: int | None, wanted: bool) -> Iterator[Callable[..., None]]:
    """Show a bar for ``total`` items if it is wanted; yield the function that counts done ones.

    The number of items is None if it is not known.

    Its second argument, if given, replaces ``what``.
    """
    if not wanted:
        yield lambda count, what="": None
        return
    from rich import progress  # it takes a moment to import
    from rich.console import Console

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            return f"{task.speed:.1f}/s" if task.speed else ""

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if console.is_jupyter:  # which shows a line that is written again as a terminal does
        console = Console(stderr=True, force_jupyter=False, force_terminal=True)
    with progress.Progress(*columns, console=console, redirect_stdout=False) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count, what=what: shown.update(task, advance=count, description=what)
