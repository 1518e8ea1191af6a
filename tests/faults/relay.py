"""A TCP relay that a test may slow down, cut or silence."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any


@dataclass(eq=False)
class _Connection:
    silent: bool = False
    asked: bool = False
    task: asyncio.Task[None] | None = None


@dataclass
class Relay:
    """A relay from ``port`` to the local port ``target``, on the event loop of its own thread."""

    target: int
    loop: asyncio.AbstractEventLoop
    port: int = 0
    delay_s: float = 0.0
    """Delay before an answer is forwarded."""
    closed: bool = False
    """Whether new connections are closed at once."""
    _connections: set[_Connection] = field(default_factory=set)

    def cut(self) -> None:
        """End all connections, and accept no new ones."""
        self.closed = True
        for connection in list(self._connections):
            assert connection.task is not None
            self.loop.call_soon_threadsafe(connection.task.cancel)

    def silence(self) -> None:
        """Forward nothing more on the open connections, not even their end, as if unplugged."""
        for connection in list(self._connections):
            connection.silent = True

    def mend(self) -> None:
        """Accept new connections again."""
        self.closed = False

    async def end(self, server: asyncio.Server) -> None:
        server.close()
        tasks = [connection.task for connection in self._connections if connection.task]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(task=asyncio.current_task())
        self._connections.add(connection)
        writers = [writer]
        try:
            if self.closed:
                return
            answers, questions = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(questions)
            await asyncio.gather(
                self._pass_on(connection, reader, questions, answering=False),
                self._pass_on(connection, answers, writer, answering=True),
            )
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            for side in writers:
                side.close()
                with suppress(ConnectionError):
                    await side.wait_closed()

    async def _pass_on(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answering: bool,
    ) -> None:
        while data := await reader.read(2**16):
            if answering and connection.asked and self.delay_s:
                await asyncio.sleep(self.delay_s)
            connection.asked = not answering
            while connection.silent:
                await asyncio.sleep(0.1)
            writer.write(data)
            await writer.drain()
        if not connection.silent:
            writer.close()


@contextmanager
def running(target: int) -> Iterator[Relay]:
    """Run a relay to ``target`` on a free port."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    relay = Relay(target, loop)

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    server = on_loop(asyncio.start_server(relay.serve, "127.0.0.1", 0))
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        on_loop(relay.end(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
