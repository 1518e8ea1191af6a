"""Files that are replaced as a whole, so that a reader never sees a half-written one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards that file replaces ``path``.

    If the block raises, ``path`` stays as it was and the new file is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
