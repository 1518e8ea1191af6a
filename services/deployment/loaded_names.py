"""The names of the models that an application has loaded, noted for the successor of a replica.

Empty files beside the metrics, which the replicas of a node share, and which end with the service.
"""

import os
from contextlib import suppress
from pathlib import Path


class LoadedNames:
    """The notes of one application; without a directory of metrics, nothing is noted."""

    def __init__(self, application: str):
        beside = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._folder = Path(beside, "loaded", application) if beside else None

    def take(self) -> list[str]:
        """Return all names, and forget them: a model whose load ends the process is loaded once."""
        if self._folder is None or not self._folder.is_dir():
            return []
        files = sorted(self._folder.iterdir())
        for file in files:
            file.unlink(missing_ok=True)
        return [file.name for file in files]

    def note(self, name: str, loaded: bool) -> None:
        if self._folder is None:
            return
        with suppress(OSError):  # the service is ending, or the disk is full
            if loaded:
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / name).touch()
            else:
                (self._folder / name).unlink(missing_ok=True)
