"""Parse multipart/form-data into the values of its fields: text as UTF-8, files as bytes.

Starlette's parser accepts any Python encoding that the request names, some of which take seconds
per megabyte, and it parses on the event loop.
"""

import re
from collections import deque
from typing import Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from samclip_core.errors import InvalidRequest
from services.request.limits import FORM_HEADERS, PART_HEADERS

CHARSET_FIELD = "_charset_"
"""The field in which browsers name the encoding of all others (RFC 7578, section 4.6)."""
JOINED = 16  # chunks that are parsed at once: each costs time, however small it is
MAX_HEADER = 2048  # bytes of one header of a part
IMAGE_FILE = re.compile(r"\.(?:jpe?g|png|webp)$", re.IGNORECASE)


def parse(chunks: deque[bytes], content_type: str, most_parts: int) -> dict[str, list[Any]]:
    """Return all values of each name, in order. Empties ``chunks``.

    Raises InvalidRequest for a form that is malformed, has more than ``most_parts`` parts, or
    contains text that is not UTF-8.
    """
    _, options = parse_options_header(content_type)
    check_charset(options.get("charset"), "the form")
    if not options.get("boundary"):
        raise InvalidRequest("the form is broken: its content-type names no boundary")
    found: dict[str, list[Any]] = {}
    parts = headers = 0
    try:
        # Not its strict mode, which refuses a line break that arrives after the last boundary.
        with PushMultipartParser(options["boundary"], max_header_size=MAX_HEADER) as parser:
            while chunks:  # free the memory of each as soon as it is parsed
                block = b"".join(chunks.popleft() for _ in range(min(JOINED, len(chunks))))
                headers += len(block)
                for event in parser.parse(block):
                    if isinstance(event, MultipartSegment):
                        part, pieces, parts = event, list[bytes](), parts + 1
                        if parts > most_parts:
                            raise InvalidRequest(
                                f"the form has more than {most_parts:,} parts: send fewer"
                            )
                    elif event is not None:
                        pieces.append(event)
                        headers -= len(event)
                    else:
                        found.setdefault(part.name, []).append(_value(part, b"".join(pieces)))
                if headers > FORM_HEADERS + PART_HEADERS * parts:
                    raise InvalidRequest("the form has too long headers: send only names and files")
    except MultipartError as error:
        raise InvalidRequest(f"the form is broken: {error}") from error
    for charset in found.pop(CHARSET_FIELD, ()):
        check_charset(str(charset), "the form")
    return found


def check_charset(name: str | None, what: str) -> None:
    """Raise InvalidRequest unless ``name`` is UTF-8, ASCII or None; ``what`` names the text."""
    if name is not None and name.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest(f"{what} has the charset {name[:40]!r}: send UTF-8")


def key(name: str, text: str) -> str:
    """Return the text of an image's field, its key. Raises InvalidRequest for a file's name."""
    if IMAGE_FILE.search(text[-6:]):  # not in all of it, which may be long
        raise InvalidRequest(
            f"field {name[:80]!r} is the name {text[-80:]!r}, expected the file itself: "
            f"curl sends it with -F {name}=@FILE"
        )
    return text


def _value(part: MultipartSegment, content: bytes) -> str | bytes:
    """Return the content of a file, or the text of another part."""
    if not part.name:
        raise InvalidRequest("the form is broken: a part has no name in content-disposition")
    if part.filename is not None:
        return content
    what = f"field {part.name[:80]!r}"
    check_charset(part.charset, what)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} of the form is not UTF-8: {error.reason}") from error
