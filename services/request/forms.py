"""Parse multipart/form-data into the values of its fields: text as UTF-8, files as bytes.

Starlette's parser accepts any Python encoding that the request names, some of which take seconds
per megabyte, and it parses on the event loop.
"""

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from samclip_core.errors import InvalidRequest
from services.request.limits import FORM_HEADERS, PART_HEADERS

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

CHARSET_FIELD = "_charset_"
"""The field in which browsers name the encoding of all others (RFC 7578, section 4.6)."""
JOINED = 16  # chunks that are parsed at once: each costs time, however small it is
MAX_HEADER = 2048  # bytes: the time of parse_options_header grows with the square
IMAGE_FILE = re.compile(r"\.(?:jpe?g|png|webp)$", re.IGNORECASE)


def parse(chunks: deque[bytes], content_type: str, most_parts: int) -> dict[str, list[Any]]:
    """Return all values of each name, in order. Empties ``chunks``.

    Raises InvalidRequest for a form that is malformed, has more than ``most_parts`` parts, or
    contains text that is not UTF-8.
    """
    _, parameters = parse_options_header(content_type)
    check_charset(parameters.get(b"charset", b"utf-8").decode("latin-1"), "the form")
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise InvalidRequest("the form is broken: its content-type names no boundary")
    form, delimiters, size = _Form(), 0, 0
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_size=MAX_HEADER)
        while chunks:  # free the memory of each as soon as it is parsed
            block = b"".join(chunks.popleft() for _ in range(min(JOINED, len(chunks))))
            # What only resembles a delimiter costs as much as one.
            delimiters += block.count(b"\r\n--" + boundary)
            if delimiters > most_parts:
                raise InvalidRequest(f"the form has more than {most_parts:,} parts: send fewer")
            parser.write(block)
            size += len(block)
            if size - form.content > FORM_HEADERS + PART_HEADERS * len(form.parts):
                raise InvalidRequest("the form has too long headers: send only names and files")
    except FormParserError as error:
        raise InvalidRequest(f"the form is broken: {error}") from error
    if not form.ended:
        raise InvalidRequest("the form is broken: it ends before its last boundary")
    return form.values()


def check_charset(name: str, what: str) -> None:
    """Raise InvalidRequest unless ``name`` is UTF-8 or ASCII; ``what`` names the text."""
    if name.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest(f"{what} has the charset {name[:40]!r}: send UTF-8")


def key(name: str, text: str) -> str:
    """Return the text of an image's field, its key. Raises InvalidRequest for a file's name."""
    if IMAGE_FILE.search(text[-6:]):  # not in all of it, which may be long
        raise InvalidRequest(
            f"field {name[:80]!r} is the name {text[-80:]!r}, expected the file itself: "
            f"curl sends it with -F {name}=@FILE"
        )
    return text


class _Form:
    """The parts of a form, collected through the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str | bytes]] = []
        self.ended = False
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._value = b""
        self._pieces: list[bytes] = []
        self.content = 0  # bytes of all values

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def values(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, value in self.parts:
            found.setdefault(name, []).append(value)
        for charset in found.pop(CHARSET_FIELD, ()):
            check_charset(str(charset), "the form")
        return found

    def _begin(self) -> None:
        self._headers, self._pieces = {}, []

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])
        self.content += end - start

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise InvalidRequest("the form is broken: a part has no name in content-disposition")
        name = _text(options[b"name"], "the name of a field")
        content = b"".join(self._pieces)
        if b"filename" in options:
            self.parts.append((name, content))
            return
        _, parameters = parse_options_header(self._headers.get(b"content-type"))
        check_charset(
            parameters.get(b"charset", b"utf-8").decode("latin-1"), f"field {name[:80]!r}"
        )
        self.parts.append((name, _text(content, f"field {name[:80]!r}")))

    def _end(self) -> None:
        self.ended = True


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} of the form is not UTF-8: {error.reason}") from error
