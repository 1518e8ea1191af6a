"""One object of a photograph by clicks, asynchronous and blocking."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from samclip import wire
from samclip.errors import DeadlineExceeded, KeyUnknown, Unavailable
from samclip.transport import Session, blocking
from samclip.types import Box, Mask, Prompt
from samclip.v1 import samclip_pb2 as pb


class _Clicks:
    """The messages on one object so far, their answers, and the session with the service.

    The service ends a session after an error, or if it is idle for minutes. The next message then
    opens another one and repeats the earlier messages.
    """

    def __init__(self, session: Session, key: str, encoded: bytes) -> None:
        self._session = session
        self._key = key
        self._encoded = encoded
        self._stream: Any = None
        self._sent: list[pb.SegmentStreamRequest] = []
        self._masks: list[Mask] = []
        self._behind = False  # the service knows other messages than those in ``_sent``

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._sent)} clicks and boxes, mask {self.mask!r})"

    @property
    def mask(self) -> Mask | None:
        """The latest answer; None before the first click."""
        return self._masks[-1] if self._masks else None

    async def _add(self, added: Prompt) -> Mask:
        prompt = wire.prompt(added)
        message = pb.SegmentStreamRequest(points=prompt.points)
        if prompt.HasField("box"):
            message.box.CopyFrom(prompt.box)
        reply = await self._exchange(message)
        self._sent.append(message)
        self._masks.append(wire.mask(reply.masks[0], reply.image, self._encoded))
        return self._masks[-1]

    async def _exchange(self, message: pb.SegmentStreamRequest) -> Any:
        if self._stream is not None:
            try:
                return await self._caught_up(message)
            except (Unavailable, DeadlineExceeded):
                pass  # perhaps the session had ended already
        try:
            await self._open(pb.Image(key=self._key))
        except KeyUnknown:
            if not self._encoded:
                raise
            await self._open(pb.Image(encoded=self._encoded))
        return await self._caught_up(message)

    async def _open(self, image: pb.Image) -> None:
        self._stream, self._behind = self._session.open_stream("SegmentStreamRequest"), True
        await self._ask(pb.SegmentStreamRequest(image=image))

    async def _caught_up(self, message: pb.SegmentStreamRequest) -> Any:
        """Send a message, after those that the service does not know."""
        if self._behind:
            await self._ask(pb.SegmentStreamRequest(restart=True))
            for earlier in self._sent:
                await self._ask(earlier)
            self._behind = False
        return await self._ask(message)

    async def _ask(self, message: pb.SegmentStreamRequest) -> Any:
        try:
            return await self._session.exchange(self._stream, message)
        except BaseException:  # also an interrupt: the answer would be taken for the next one's
            await self._end()
            raise

    async def _end(self) -> None:
        if self._stream is not None:
            await self._stream.close()
            self._stream = None


class AsyncClicks(_Clicks, AbstractAsyncContextManager["AsyncClicks"]):
    """One object of a photograph by clicks, from ``AsyncPhoto.clicks``: each refines the mask."""

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def click(self, x: float, y: float, *, negative: bool = False) -> Mask:
        """Click inside the object, or outside it if ``negative``; return the refined mask.

        x, y: pixels of the photograph; a pixel's centre is at .5.
        """
        points = [(x, y)]
        return await self._add(Prompt(negative=points) if negative else Prompt(points=points))

    async def box(self, box: Box) -> Mask:
        """Draw a box (x_min, y_min, x_max, y_max) around the object; return the refined mask."""
        return await self._add(Prompt(box=box))

    async def undo(self) -> Mask | None:
        """Take back the last click or box; return the mask before it, None if there is none."""
        del self._sent[-1:], self._masks[-1:]
        self._behind = True
        return self.mask

    async def restart(self) -> None:
        """Forget the clicks, for another object."""
        self._sent, self._masks, self._behind = [], [], True

    async def close(self) -> None:
        """End the session."""
        await self._end()


class Clicks(_Clicks, AbstractContextManager["Clicks"]):
    """One object of a photograph by clicks, from ``Photo.clicks``: each refines the mask.

    >>> with photo.clicks() as session:
    ...     first = session.click(200, 60)
    ...     second = session.click(20, 20, negative=True)
    ...     session.undo().area == first.area
    True
    """

    def __exit__(self, *_: object) -> None:
        self.close()

    click = blocking(AsyncClicks.click)
    box = blocking(AsyncClicks.box)
    undo = blocking(AsyncClicks.undo)
    restart = blocking(AsyncClicks.restart)
    close = blocking(AsyncClicks.close)
