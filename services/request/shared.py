"""Files that requests share while they need them at the same time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager

from services.request.room import Place, Room


class _File:
    """The bytes once they are there, and the number of requests that want them."""

    def __init__(self, place: Place):
        self.place, self.turn = place.__enter__(), asyncio.Lock()
        self.users, self.content = 0, b""


class Shared:
    """The files in a room. Each is fetched once for all requests that want it at the same time.

    They use it one after another, so that few copies exist. For one event loop.
    """

    def __init__(self, room: Room):
        self.room = room
        self._files: dict[Hashable, _File] = {}

    @asynccontextmanager
    async def opened(
        self, name: Hashable, fetch: Callable[[Place], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """Yield a file; ``fetch`` returns it, and holds its bytes. Raises the errors of ``fetch``.

        If one request gives up the fetch, the next one begins it again.
        """
        if name not in self._files:
            self._files[name] = _File(self.room.place())
        file = self._files[name]
        file.users += 1
        try:
            async with file.turn:
                file.content = file.content or await fetch(file.place)
                yield file.content
        finally:
            file.users -= 1
            if not file.users:
                del self._files[name]
                self.room.leave(file.place)
