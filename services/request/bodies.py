"""HTTP bodies: bytes to the fields of JSON or of a form, and values to JSON.

Text is UTF-8. Starlette's parser of forms accepts any Python encoding that the request names, some
of which take seconds per megabyte, and it parses on the event loop.
"""

import io
import json
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from samclip_core.errors import InvalidRequest, UnsupportedImage
from services.request.context import KEY
from services.request.limits import FORM_HEADERS, MAX_VALUES, PART_HEADERS
from services.request.transit import PACE, Budget, Pace, limited

try:
    from multipart import MultipartError, MultipartSegment, PushMultipartParser
except ModuleNotFoundError:
    raise
except ImportError as error:  # python-multipart before 0.0.13 has a module of the same name
    raise ImportError(
        "an old version of python-multipart is imported in place of the package multipart, which "
        "parses forms: pip install --upgrade python-multipart"
    ) from error

Fields = dict[str, Any]
"""The members of a JSON object, or all values of each name in a form, with files as bytes."""

HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate, which is a character only as half of a pair."""
MAX_DIGITS = 1000  # of a whole number: the time to read one grows with the square
CHARSET_FIELD = "_charset_"
"""The field in which browsers name the encoding of all others (RFC 7578, section 4.6)."""
JOINED = 16  # chunks of a form that are parsed at once: each costs time, however small it is
MAX_HEADER = 2048  # bytes of one header of a part
MAX_BOUNDARY = 256  # characters; clients send up to 70
FILE_NAME = re.compile(r";\s*filename\*?\s*=\s*(\"\")?", re.IGNORECASE)
"""Makes a part a file, with or without quotes, in any encoding; group 1 is a name that is empty."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Parser(PushMultipartParser):
    """A parser that reads the headers of parts as clients write them, not only as RFC 7578 does."""

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> MultipartSegment:
        """Make a part, whatever its disposition is called; its Content-Length is ignored."""
        self._segment_limit = -1
        return MultipartSegment(headerlist)


def is_form(content_type: str) -> bool:
    """Return whether a body is a form, not JSON. Raises UnsupportedImage for other types."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise UnsupportedImage(
            f"the body has the content-type {kind or 'none'!r}, which is unsupported: "
            "send multipart/form-data or application/json"
        )
    return kind == "multipart/form-data"


@asynccontextmanager
async def whole(
    request: Request, limit: int, arrivals: Budget, pace: Pace = PACE
) -> AsyncIterator[deque[bytes]]:
    """Yield the chunks of the body, whose bytes count until the end of the ``with`` block.

    A body that has already arrived needs no slot.

    Raises ImageTooLarge beyond ``limit`` bytes, without reading more; RequestTooSlow for a body
    slower than the pace, Overloaded if ``arrivals`` is full; UnsupportedImage for a body
    that is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedImage(
            f"the body has the content-encoding {encoding[:80]!r}, expected none: "
            "send it uncompressed, without this header"
        )
    receive = limited(request.receive, limit, pace)
    first = await receive()
    chunks = deque([first.get("body", b"")])
    if not first.get("more_body"):
        yield chunks
        return
    with arrivals.reserve(request.headers.get(KEY, "")) as reserved:
        reserved.hold(len(chunks[0]))
        async for chunk in Request(request.scope, receive).stream():
            reserved.hold(len(chunk))
            chunks.append(chunk)
        yield chunks


def parse(chunks: deque[bytes], content_type: str, most_parts: int) -> Fields:
    """Return the fields of a JSON object, or of a form of at most ``most_parts`` parts.

    Raises InvalidRequest for a body that is malformed.
    """
    if is_form(content_type):
        return parse_form(chunks, content_type, most_parts)
    return parse_object(b"".join(chunks), content_type)


def parse_object(body: bytes, content_type: str = "") -> Fields:
    """Return the members of a JSON object in UTF-8. Raises InvalidRequest."""
    _check_charset(_parameter(content_type, "charset"), "the body")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error.reason}") from error
    check_values([text], "the body")
    value = parse_json(text, "the body")
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object with the fields of the request")
    return value


def check_values(contents: Sequence[str], what: str) -> None:
    """Raise InvalidRequest if JSON has too many values; ``what`` names it."""
    if sum(content.count(mark) for content in contents for mark in ",[{") > MAX_VALUES:
        raise InvalidRequest(
            f"{what} has more than {MAX_VALUES:,} values, counted by commas and brackets: send "
            "less at once"
        )


def parse_json(content: str, what: str) -> Any:
    """Return the value of a JSON text, which ``what`` names. Raises InvalidRequest."""
    try:
        value = json.loads(
            content, object_pairs_hook=_members, parse_int=_integer, parse_constant=_integer
        )
        if HALF_A_PAIR.search(content):
            for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
                piece.encode()  # one at a time: a single character can make all others four bytes
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} has half of a surrogate pair: send both halves") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error
    return value


def _integer(digits: str) -> int:
    """Return a whole number; NaN and Infinity are none."""
    if len(digits) > MAX_DIGITS or not digits[-1].isdecimal():
        raise ValueError(f"{digits[:20]!r} is no number, or has more than {MAX_DIGITS:,} digits")
    return int(digits)


def _members(pairs: list[tuple[str, Any]]) -> Fields:
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequest(f"{twice[:80]!r} is given more than once: send it once")
    return members


def parse_form(chunks: deque[bytes], content_type: str, most_parts: int) -> dict[str, list[Any]]:
    """Return all values of each name, in order. Empties ``chunks``.

    Raises InvalidRequest for a form that is malformed, has more than ``most_parts`` parts, or
    contains text that is not UTF-8.
    """
    _check_charset(_parameter(content_type, "charset"), "the form")
    boundary = _parameter(content_type, "boundary")
    if not boundary or len(boundary) > MAX_BOUNDARY:
        raise InvalidRequest(
            "the form is broken: its content-type names no boundary of at most "
            f"{MAX_BOUNDARY} characters"
        )
    found: dict[str, list[Any]] = {}
    try:
        for part, content in _parts(chunks, boundary, most_parts):
            if (value := _value(part, content)) is not None:
                found.setdefault(_name(part), []).append(value)
    except MultipartError as error:
        raise InvalidRequest(f"the form is broken: {error}") from error
    for charset in found.pop(CHARSET_FIELD, ()):
        _check_charset(str(charset), "the form")
    return found


def _parts(
    chunks: deque[bytes], boundary: str, most_parts: int
) -> Iterator[tuple[MultipartSegment, bytes]]:
    """Yield the parts of a form with their contents. Raises MultipartError and InvalidRequest."""
    number = headers = 0
    # Headers are read as Latin-1, which has all bytes: names of files have any encoding. Not in
    # strict mode, which refuses a line break that arrives after the last boundary.
    with _Parser(boundary, max_header_size=MAX_HEADER, header_charset="latin-1") as parser:
        while chunks:  # free the memory of each as soon as it is parsed
            block = b"".join(chunks.popleft() for _ in range(min(JOINED, len(chunks))))
            headers += len(block)
            for event in parser.parse(block):
                if isinstance(event, MultipartSegment):
                    part, pieces, number = event, list[bytes](), number + 1
                    if number > most_parts:
                        raise InvalidRequest(
                            f"the form has more than {most_parts:,} parts: send fewer"
                        )
                elif event is not None:
                    pieces.append(event)
                    headers -= len(event)
                else:
                    yield part, b"".join(pieces)
            if headers > FORM_HEADERS + PART_HEADERS * number:
                raise InvalidRequest("the form has too long headers: send only names and files")


def _parameter(content_type: str, name: str) -> str | None:
    """Return a parameter of a content type; an unquoted value may have any characters but ``;``."""
    pattern = rf';\s*{name}\s*=\s*(?:"([^"]*)"|([^;\s]*))'
    found = re.search(pattern, content_type, re.IGNORECASE)
    return found and (found[1] or found[2] or "")


def _check_charset(name: str | None, what: str) -> None:
    """Raise InvalidRequest unless ``name`` is UTF-8, ASCII or None; ``what`` names the text."""
    if name is not None and name.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest(f"{what} has the charset {name[:40]!r}: send UTF-8")


def _name(part: MultipartSegment) -> str:
    if not part.name:
        raise InvalidRequest("the form is broken: a part has no name in content-disposition")
    return part.name.encode("latin-1").decode(errors="replace")


def _value(part: MultipartSegment, content: bytes) -> str | bytes | None:
    """Return the content of a file, the text of another part, or None if no file was chosen.

    JSON is a text: clients in browsers send it as a Blob, which has the name of a file.
    """
    file = FILE_NAME.search(part.header("Content-Disposition", ""))
    if file and part.content_type != "application/json":
        return None if file[1] and not content else content
    what = f"field {_name(part)[:80]!r}"
    _check_charset(part.charset, what)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} of the form is not UTF-8: {error.reason}") from error


class LongJSON(JSONResponse):
    """JSON of any length, to be made in a thread, during which other threads get their turns.

    ``json.dumps`` keeps the GIL until it has written all.
    """

    def render(self, content: Any) -> bytes:
        body = io.BytesIO()  # as text, one emoji would make all other characters four bytes
        body.writelines(map(str.encode, _ENCODER.iterencode(content)))
        return body.getvalue()
