"""Download of an image file from an http or https address, within limits."""

import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import IO, Any
from urllib.parse import quote, urlsplit
from urllib.request import Request

from samclip.files import TIMEOUT_S, read_to_end, within

MAX_REDIRECTS = 5
_FINAL: dict[int, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}
"""Errors that another try does not change."""


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
