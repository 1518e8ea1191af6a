"""Graphs of a checkpoint whose files are links, as in the cache of the Hugging Face hub."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from samclip_core.io import checkpoint


@contextmanager
def without_links(directory: Path) -> Iterator[Callable[[str], Path]]:
    """Yield a function that returns the path of a graph beside its weights, by its name.

    The runtimes refuse links, so linked files are copied, once and until the end of the context.
    """
    with ExitStack() as until_end:

        @cache
        def copied() -> Path:
            scratch = Path(until_end.enter_context(tempfile.TemporaryDirectory()))
            for file in (checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS):
                shutil.copy(directory / file, scratch)
            return scratch

        def path(name: str) -> Path:
            files = name, checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS
            if not any((directory / file).is_symlink() for file in files):
                return directory / name
            return Path(shutil.copy(directory / name, copied()))

        yield path
