"""Images of a task: from a data URI, or from the Label Studio that the settings name."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import ImageTooLarge, InvalidRequest, Unavailable
from services.batching.priority import Priority
from services.batching.threads import Places
from services.gateway.adapters.adapter import image_of
from services.request.transit import Budget, Reserved, aside
from services.settings import Settings

CONNECT_S = 5
UPLOADS = "data/"
"""Where Label Studio keeps uploads and local files; nothing else of it is asked for."""
COPIES = 4
"""A file in memory while an application is asked about it: the file, the message, its bytes, and
those that gRPC keeps until the answer, to repeat the call."""
AT_ONCE = 2
"""Files of the largest size that are held at once. The others wait for their turn."""


class _File:
    """The bytes once they are there, and the number of requests that want them."""

    def __init__(self, reserved: Reserved):
        self.reserved, self.turn = reserved.__enter__(), Places("label_studio_file", 1)
        self.users, self.content = 0, b""


class Files:
    """Fetches images with the operator's token; follows no redirect.

    Each is fetched once for all requests that want it at the same time. They use it one after
    another, so that few copies exist. For one event loop.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        largest = AT_ONCE * COPIES * settings.max_image_bytes
        self.budget = Budget("files of Label Studio", largest, sys.maxsize)
        self._files: dict[httpx.URL, _File] = {}
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=CONNECT_S)

    @asynccontextmanager
    async def opened(self, source: Any, priority: Priority) -> AsyncIterator[pb.Image]:
        """Yield an image. Raises InvalidRequest, ImageTooLarge and Unavailable."""
        if isinstance(source, str) and source[:5].lower() == "data:":
            yield await aside(priority, image_of, source, "the image of the task")
            return
        address = self._address(source)
        if address not in self._files:
            self._files[address] = _File(self.budget.reserve())
        file = self._files[address]
        file.users += 1
        try:
            # If its request gives up the fetch, the next one begins again.
            async with file.turn.held(priority):
                file.content = file.content or await self._fetch(address, file.reserved, priority)
                yield pb.Image(encoded=file.content)
        finally:
            file.users -= 1
            if not file.users:
                del self._files[address]
                self.budget.leave(file.reserved)

    def _address(self, source: Any) -> httpx.URL:
        base = self.settings.label_studio_url
        if not base or not isinstance(source, str):
            raise InvalidRequest("the image is not a data URI: send one, or set label_studio_url")
        if (address := stored_at(base, source)) is None:
            raise InvalidRequest(
                "the image of the task is neither a data URI nor a file of Label Studio below "
                f"/{UPLOADS}: images elsewhere are not fetched"
            )
        return address

    async def _fetch(self, address: httpx.URL, reserved: Reserved, priority: Priority) -> bytes:
        """Return a file as soon as there is room for it."""
        most = self.settings.max_image_bytes
        await reserved.wait(COPIES * most, priority)
        content = b""
        try:
            headers = {"authorization": await self._authorization(), "accept-encoding": "identity"}
            async with self._client.stream("GET", address, headers=headers) as reply:
                if reply.status_code != 200:
                    raise InvalidRequest(
                        f"Label Studio answered {reply.status_code} for the image of the task: "
                        "check label_studio_token and that the file is stored there"
                    )
                chunks, size = list[bytes](), 0
                async for chunk in reply.aiter_raw():  # unpacked, it could be a thousandfold
                    size += len(chunk)
                    if size > most:
                        raise ImageTooLarge(f"the image has more than {most:,} bytes")
                    chunks.append(chunk)
                content = b"".join(chunks)
                return content
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unavailable(f"Label Studio does not answer: {type(error).__name__}") from error
        finally:
            reserved.set(COPIES * len(content))

    async def _authorization(self) -> str:
        """Return the header for a legacy token, or for the access that a personal one gives."""
        token = self.settings.label_studio_token
        if token.count(".") != 2:  # not a JWT
            return f"Token {token}"
        address = self.settings.label_studio_url.rstrip("/") + "/api/token/refresh/"
        reply = await self._client.post(address, json={"refresh": token})
        if reply.status_code != 200:
            raise InvalidRequest("Label Studio refuses label_studio_token: set a valid one")
        return f"Bearer {reply.json()['access']}"


def stored_at(site: str, source: str) -> httpx.URL | None:
    """Return the address of a file that Label Studio stores; None for one elsewhere, or for none.

    The paths are decoded: a proxy before Label Studio may decode them, and follow the dots.
    """
    ours = httpx.URL(site.rstrip("/") + "/")
    try:
        theirs = ours.join(source)
    except (ValueError, httpx.InvalidURL):
        return None
    folders = theirs.path.replace("\\", "/").split("/")
    same = theirs.copy_with(raw_path=ours.raw_path, fragment=None) == ours
    inside = ".." not in folders and theirs.path.startswith(ours.path + UPLOADS)
    return theirs if same and inside else None
