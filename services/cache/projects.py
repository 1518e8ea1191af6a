"""The images of projects in Label Studio and CVAT, for ``samclip cache warm``.

An image's key is its content, so the files are read as the tool gives them to a model: those of
Label Studio as they are stored, and CVAT's frames in their original quality.
"""

import base64
import json
import re
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Protocol, Self
from urllib.parse import unquote
from xml.etree import ElementTree

import httpx
from samclip.download import MAX_FILE_BYTES, TIMEOUT_S

UPLOADS = "data/"
"""Where Label Studio keeps uploads and local files; nothing else of it is asked for."""
PAGE = 100  # tasks or frames
FILES_AT_ONCE = 8
LEGACY = re.compile("[0-9a-f]{40}")
"""A token of the kind that both tools had first; newer ones are sent as ``Bearer``."""
SHOWN = re.compile(r"(https?://[^\s?#]+?)/(projects|tasks)/(\d+)(?:[/?#].*)?")
"""The address that a browser shows for a project or a task."""

Pictures = Iterator[tuple[str, bytes]]


class Images(Protocol):
    """Images in parts, each of which can be read by another worker."""

    def parts(self) -> Iterator[Sequence[str]]:
        """Yield the names of images. Raises OSError and ValueError."""

    def pictures(self, part: Sequence[str], broken: dict[str, str]) -> Pictures:
        """Yield id and file of each image; add those that cannot be read to ``broken``."""


class Authorization(httpx.Auth):
    """The header for a token; a personal one of Label Studio gives access for some minutes."""

    def __init__(self, site: str, token: str):
        self._refresh = httpx.Request("POST", f"{site}/api/token/refresh/", json={"refresh": token})
        self._personal = token.count(".") == 2  # a JWT
        self._header = f"{'Token' if LEGACY.fullmatch(token) else 'Bearer'} {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the header; if it is refused, once more with a new access."""
        request.headers["authorization"] = self._header
        reply = yield request
        if reply.status_code != 401 or not self._personal:
            return
        reply = yield self._refresh
        if reply.status_code == 200:
            self._header = f"Bearer {json.loads(reply.read())['access']}"
            request.headers["authorization"] = self._header
            yield request


@contextmanager
def understood(site: str) -> Iterator[None]:
    """Raise ValueError for an answer that lacks what is read from it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise ValueError(f"{site} answers in another form than expected: {error!r}") from error


@dataclass(frozen=True)
class Project:
    """A project, or a task, at a tool's site."""

    site: str
    kind: str
    number: int
    token: str = field(repr=False)

    @classmethod
    def of(cls, shown: str, token: str) -> Self:
        """Read the address that a browser shows. Raises ValueError."""
        found = SHOWN.fullmatch(shown)
        if found is None:
            raise ValueError(
                f"{shown!r} is no address of a project or task: copy it from the browser, as in "
                "http://127.0.0.1:8080/projects/3"
            )
        return cls(found[1], found[2], int(found[3]), token)

    def __str__(self) -> str:
        return f"{self.site}/{self.kind}/{self.number}"

    def pictures(self, part: Sequence[str], broken: dict[str, str]) -> Pictures:
        """Yield id and file of each image, several read at once; see ``Images``."""

        def attempt(name: str) -> tuple[str, bytes | Exception]:
            try:
                with understood(self.site):  # a token may be renewed
                    return self.read(name)
            except (OSError, ValueError) as error:
                return name.partition(" ")[0], error

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for start in range(0, len(part), FILES_AT_ONCE):
                for id, file in pool.map(attempt, part[start : start + FILES_AT_ONCE]):
                    if isinstance(file, bytes):
                        yield id, file
                    else:
                        broken[id] = str(file)

    def read(self, name: str) -> tuple[str, bytes]:
        """Return id and file of an image. Raises OSError and ValueError."""
        raise NotImplementedError

    def _json(self, path: str, **query: int | str) -> Any:
        """Return the answer of the site's API. Raises OSError and ValueError."""
        try:
            return json.loads(self._get(f"{self.site}/api/{path}", **query))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.site}/api/{path} answers no JSON: check the address"
            ) from error

    def _get(self, address: str, **query: int | str) -> bytes:
        """Return a file of the site. Raises OSError and ValueError."""
        try:
            with self._client.stream("GET", address, params=query or None) as reply:
                if reply.status_code != 200:
                    raise OSError(
                        f"{reply.url} answers {reply.status_code}: check address and token"
                    )
                content = bytearray()
                for chunk in reply.iter_bytes():
                    content += chunk
                    if len(content) > MAX_FILE_BYTES:
                        raise ValueError(f"{address}: larger than {MAX_FILE_BYTES // 2**20} MiB")
                return bytes(content)
        except httpx.HTTPError as error:
            raise OSError(f"{address} does not answer: {error or type(error).__name__}") from error

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(auth=Authorization(self.site, self.token), timeout=TIMEOUT_S)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_client"}


class LabelStudio(Project):
    """A project in Label Studio: a name is the image's number, a space, and its address.

    The number is the task's; further images of a task have their own after a slash.
    """

    def parts(self) -> Iterator[Sequence[str]]:
        """Yield the images of a page of tasks; see ``Images``."""
        with understood(self.site):
            config = self._json(f"projects/{self.number}/")["label_config"]
            images = ElementTree.fromstring(config).iter("Image")
            values = [image.get("value", "").removeprefix("$") for image in images]
            fields = {field: f"/{n}" if n else "" for n, field in enumerate(dict.fromkeys(values))}
            seen, total, page = 0, 1, 0
            while seen < total:
                page += 1
                found = self._json("tasks/", project=self.number, page=page, page_size=PAGE)
                tasks = found["tasks"]  # the site may send fewer than PAGE
                seen, total = seen + len(tasks), found["total"] if tasks else 0
                yield [
                    f"{task['id']}{number} {task['data'][field]}"
                    for task in tasks
                    for field, number in fields.items()
                    if task["data"].get(field)
                ]

    def read(self, name: str) -> tuple[str, bytes]:
        number, _, source = name.partition(" ")
        if source[:5].lower() == "data:":
            return f"{number}/image", base64.b64decode(source.partition(",")[2])
        address = stored_at(self.site, source)
        if address is None:
            raise ValueError(f"{source[:200]} is not stored in Label Studio: upload the file to it")
        file = PurePosixPath(unquote(address.path)).name
        return f"{number}/{file}", self._get(str(address))


class Cvat(Project):
    """A task in CVAT, or the tasks of a project: a name is a task's number and a frame's."""

    def parts(self) -> Iterator[Sequence[str]]:
        """Yield the frames of each task; see ``Images``."""
        with understood(self.site):
            for task in self._tasks():
                meta = self._json(f"tasks/{task}/data/meta")
                deleted = {*meta.get("deleted_frames", ())}
                for start in range(0, meta["size"], PAGE):
                    frames = range(start, min(start + PAGE, meta["size"]))
                    yield [f"{task}/{frame}" for frame in frames if frame not in deleted]

    def _tasks(self) -> Iterator[int]:
        if self.kind == "tasks":
            yield self.number
            return
        page, more = 0, True
        while more:
            page += 1
            found = self._json("tasks", project_id=self.number, page=page, page_size=PAGE)
            yield from (task["id"] for task in found["results"])
            more = found["next"] is not None

    def read(self, name: str) -> tuple[str, bytes]:
        task, _, frame = name.partition("/")
        address = f"{self.site}/api/tasks/{task}/data"
        return name, self._get(address, type="frame", quality="original", number=frame)


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
