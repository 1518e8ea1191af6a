"""Calls in which each message has one answer, blocking and asynchronous."""

import asyncio
import contextlib
import queue
import threading
from typing import Any

import grpc
import grpc.aio


class Stream:
    """A call over a blocking channel; each answer has ``timeout`` seconds."""

    def __init__(self, rpc: Any, headers: list[tuple[str, str]], timeout: float) -> None:
        self.id = dict(headers)["x-request-id"]
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._timeout = timeout
        self._call = rpc(iter(self._messages.get, None), metadata=headers)

    async def ask(self, message: Any) -> Any:
        """Send a message and return its answer, None at the end of the call.

        Raises grpc.RpcError and TimeoutError.
        """
        timer = threading.Timer(self._timeout, self._call.cancel)
        timer.start()
        try:
            self._messages.put(message)
            return next(self._call, None)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED:  # by the timer
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    async def close(self) -> None:
        self._messages.put(None)
        self._call.cancel()


class AsyncStream:
    """A call over a channel of ``grpc.aio``, as ``Stream``."""

    def __init__(self, rpc: Any, headers: list[tuple[str, str]], timeout: float) -> None:
        self.id = dict(headers)["x-request-id"]
        self._timeout = timeout
        self._call = rpc(metadata=headers)

    async def ask(self, message: Any) -> Any:
        async with asyncio.timeout(self._timeout):
            with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended: see below
                await self._call.write(message)
            answer = await self._call.read()
        return answer or None  # at the end, an object that is false

    async def close(self) -> None:
        self._call.cancel()
