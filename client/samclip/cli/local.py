"""``--local``: services in this process answer the client's requests."""

import asyncio
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from threading import Thread
from typing import Any

import grpc

from samclip import wire
from samclip.client import Client
from samclip.transport import Session
from samclip.types import Model
from samclip.v1 import samclip_pb2 as pb


def client(checkpoint: str, timeout: float, head: str = "") -> Client:
    """Return a client whose requests this checkpoint answers in ``timeout`` seconds each.

    head: specification of a head of one's own that answers too. Raises ValueError, and any error of
    the head's code.
    """
    made = Client()
    with _loading(checkpoint):
        made._session = LocalSession(checkpoint, timeout, head)
    return made


def _loading(checkpoint: str) -> AbstractContextManager[object]:
    """Say on a terminal what takes seconds, and longer the first time: graphs are compiled."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console  # it takes a moment to import

    return Console(stderr=True).status(f"loading {checkpoint} …")


def _of_head(error: Exception) -> ValueError:
    """Print where the code of a head of one's own has failed; return the reason."""
    traceback.print_exception(error, limit=-3)
    return ValueError(f"{type(error).__name__}: {error}")


class LocalSession(Session):
    """A session whose requests do not leave this process; threads may share it."""

    def __init__(self, checkpoint: str, timeout: float, head: str) -> None:
        """Load a bundled checkpoint by name, or one from its directory. Raises as ``client``."""
        super().__init__(grpc, "127.0.0.1:9000", None, False, timeout, False)  # never connects
        try:
            # The client does not need these packages otherwise.
            self._errors = import_module("samclip_core.errors")
            services = import_module("services.local")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--local needs {error.name}, which is not installed: "
                "in a clone, run pip install -e '.[core]'"
            ) from error
        try:
            self._local = services.Local(checkpoint, head)
        except self._errors.HeadError as error:
            raise ValueError(f"--head: {error}") from error
        except self._errors.CheckpointError as error:
            raise ValueError(
                f"--local: {error} (write the images before --local, or --local=edge)"
            ) from error
        except Exception as error:
            if not head:
                raise
            raise _of_head(error) from error
        self.model = wire.like(Model, self._local.model)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def ask(self, request: Any, images: Sequence[tuple[pb.Image, str, bytes]] = ()) -> Any:
        """Answer a request. Raises ValueError if it is invalid, takes too long, or a head fails."""
        for slot, _, encoded in images:
            slot.encoded = encoded
        answer = self._local.answer(request, self._timeout)
        try:
            return asyncio.run_coroutine_threadsafe(answer, self._loop).result()
        except self._errors.DeadlineExceeded as error:
            raise ValueError(f"{error}, or give more --timeout") from error
        except self._errors.SamClipError as error:
            raise ValueError(str(error)) from error
        except Exception as error:
            raise _of_head(error) from error

    async def close(self) -> None:
        """Stop the services and their thread."""
        await super().close()
        asyncio.run_coroutine_threadsafe(self._local.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
