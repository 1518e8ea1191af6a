"""End the service at once when a process of its Ray has ended; Ray notices after a minute."""

import contextlib
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOK_S = 0.1
NEEDED = ("gcs_server", "raylet")
"""The processes without which no other can work; Ray does not restart them."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[None]:
    """End this process with exit code 1 if a needed process of its Ray ends meanwhile.

    Its children end with it. ``directory``, the service's own, is removed. No thread can be
    interrupted while it waits for such a Ray, so this one ends the process.
    """
    import psutil  # which Ray brings
    import ray

    node, stopped = ray._private.worker._global_node, threading.Event()

    def watch() -> None:
        while not (lost := _lost(node)):
            if stopped.wait(LOOK_S):
                return
        if stopped.is_set():
            return
        logger.error(
            "%s of Ray ended, without which no request is answered: start the service again; if "
            "its memory was full, lower the settings that keep data in memory, or free some",
            lost,
        )
        # Ray's agents would wait for the lost process for a minute. HAProxy ends with this process,
        # whose main thread would report an earlier end.
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                if child.name() != "haproxy":
                    child.kill()
        shutil.rmtree(directory, ignore_errors=True)
        sys.stdout.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches Ray").start()
    try:
        yield
    finally:
        stopped.set()


def _lost(node: Any) -> str:
    """Return the name of a needed process that has ended, and how; "" if all run."""
    for kind, process in node.dead_processes():
        if kind in NEEDED:
            code = process.returncode
            return f"{kind} (exit {code})" if code >= 0 else f"{kind} (signal {-code})"
    return ""
