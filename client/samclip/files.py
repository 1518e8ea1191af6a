"""Files of this machine and of the web, read within limits of kind, bytes and time."""

import errno
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from threading import Thread
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import Request

from samclip.values.files import open_regular

MAX_FILE_BYTES = 64 * 2**20  # a request's maximum size
TIMEOUT_S = 30.0  # of a whole image
_CHUNK_BYTES = 2**20
MAX_REDIRECTS = 5
_FINAL: dict[int, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}
"""Errors that another try does not change."""
T = TypeVar("T")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return a regular file of this machine, of up to MAX_FILE_BYTES.

    Raises OSError if it cannot be read, TimeoutError after TIMEOUT_S, and ValueError if it is too
    large or no regular file.
    """

    def work(deadline: float) -> bytes:
        with open_regular(path) as file:
            try:
                return read_to_end(file.read, deadline)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}: {error}") from None

    return within(TIMEOUT_S, work)


def within(seconds: float, work: Callable[[float], T]) -> T:
    """Call a function with its deadline, on time.monotonic(); return what it returns.

    It runs in a thread of its own, which is left alone at the deadline: a disk or a server may
    never answer. Raises TimeoutError, and what the function raises.
    """
    done, deadline = Future[T](), time.monotonic() + seconds

    def run() -> None:
        try:
            done.set_result(work(deadline))
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"no file within {seconds:g} s") from None


def read_to_end(read: Callable[[int], bytes | None], deadline: float, stated: int = 0) -> bytes:
    """Return all that is left to read, of up to MAX_FILE_BYTES.

    read: returns some bytes, or none at the end. stated: how many there should be. Raises
    TimeoutError after the deadline, OSError if fewer were read than stated, ValueError if there
    are too many.
    """
    file = bytearray()
    while max(stated, len(file)) <= MAX_FILE_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = read(min(_CHUNK_BYTES, MAX_FILE_BYTES + 1 - len(file)))
        if chunk is None:
            raise BlockingIOError(errno.EAGAIN, "a file that waits for others")
        file += chunk
        if not chunk:
            if len(file) < stated:
                raise OSError(f"the connection broke after {len(file):,} of {stated:,} bytes")
            return bytes(file)
    raise ValueError(f"a file larger than {MAX_FILE_BYTES // 2**20} MiB")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req: Request, fp: IO[bytes], *rest: Any, **named: Any) -> Any:
        fp.close()  # otherwise its body is read, of any size
        return super().redirect_request(req, fp, *rest, **named)


def is_url(source: object) -> bool:
    """Return whether a source is an address, such as "https://example.org/cat.jpg"."""
    return isinstance(source, str) and "://" in source


def download(url: str, timeout_s: float | None = None) -> bytes:
    """Return the file at an http or https address; this process connects, not the service.

    timeout_s: of all; None means ``TIMEOUT_S``. Raises OSError if the file cannot be had,
    TimeoutError, ValueError if the address is of another kind, or the file is too large or a web
    page.
    """
    timeout_s = timeout_s or TIMEOUT_S
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise ValueError(f"{url}: expected an address with http:// or https://, or a path")
    ascii_url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = Request(ascii_url, headers={"User-Agent": "samclip", "Accept": "image/*"})

    def work(deadline: float) -> bytes:
        with _opener().open(request, timeout=timeout_s) as response:
            return _read(response, deadline)

    try:
        return within(timeout_s, work)  # a server may drip its head, byte by byte
    except urllib.error.HTTPError as error:
        error.close()
        kind = _FINAL.get(error.code, OSError)
        raise kind(f"{url}: {_answered(error)}") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise TimeoutError(f"{url}: no file within {timeout_s:g} s") from None
        raise OSError(f"{url}: {reason}") from error


def _answered(error: urllib.error.HTTPError) -> str:
    if error.code in (301, 302, 303, 307, 308):
        return f"redirected more than {MAX_REDIRECTS} times, or to another kind of address"
    return f"the server answered {error.code} {error.msg}"


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: a redirect cannot lead to a file or to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: HTTPResponse, deadline: float) -> bytes:
    if response.headers.get_content_type() == "text/html":
        raise ValueError("a web page, not an image: give the address of the image itself")
    return read_to_end(response.read1, deadline, response.length or 0)
