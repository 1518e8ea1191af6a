"""Conversion between HTTP bodies and messages: protobuf's JSON mapping, with conveniences.

An image may be a bare base64 string or a data URI; a form may upload it as a file; where a message
takes several images, ``image`` gives a single one; points and boxes may be lists of coordinates,
and an area may be its box. Text is UTF-8, and a field with one value may be given only once. An
RLE's counts are ASCII as in COCO's JSON. In replies, 64-bit integers are numbers, and a tensor
without data has no ``data``.
"""

import base64
import json
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from multipart import parse_options_header
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from samclip_core.errors import InvalidRequest, UnsupportedImage
from services.request import arguments, forms
from services.request.arguments import AREA, IMAGE, RLE, Most, descriptor, is_map, names_of
from services.request.arrival import Arrivals, limited
from services.request.callers import KEY
from services.request.limits import MAX_VALUES

Fields = dict[str, Any]
"""The members of a JSON object, or all values of each name in a form, with files as bytes."""

M = TypeVar("M", bound=Message)

HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate, which is a character only as half of a pair."""
MAX_DIGITS = 1000  # of a whole number: the time to read one grows with the square
TENSOR = descriptor(pb.Tensor)


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
async def whole(request: Request, limit: int, arrivals: Arrivals) -> AsyncIterator[deque[bytes]]:
    """Yield the chunks of the body, whose bytes count until the end of the ``with`` block.

    A body that has already arrived needs no slot.

    Raises ImageTooLarge beyond ``limit`` bytes, without reading more; RequestTooSlow for a body
    slower than the pace of ``arrivals``, Overloaded if those are full; UnsupportedImage for a body
    that is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedImage(
            f"the body has the content-encoding {encoding[:80]!r}, expected none: "
            "send it uncompressed, without this header"
        )
    receive = limited(request.receive, limit, arrivals.pace)
    first = await receive()
    chunks = deque([first.get("body", b"")])
    if not first.get("more_body"):
        yield chunks
        return
    with arrivals.place(request.headers.get(KEY, "")) as hold:
        hold(len(chunks[0]))
        async for chunk in Request(request.scope, receive).stream():
            hold(len(chunk))
            chunks.append(chunk)
        yield chunks


def parse(chunks: deque[bytes], content_type: str, most_parts: int) -> Fields:
    """Return the fields of a JSON object, or of a form of at most ``most_parts`` parts.

    Raises InvalidRequest for a body that is malformed.
    """
    if is_form(content_type):
        return forms.parse(chunks, content_type, most_parts)
    return parse_object(b"".join(chunks), content_type)


def parse_object(body: bytes, content_type: str = "") -> Fields:
    """Return the members of a JSON object in UTF-8. Raises InvalidRequest."""
    _, options = parse_options_header(content_type)
    forms.check_charset(options.get("charset"), "the body")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error.reason}") from error
    _check_values([text], "the body")
    value = _parse(text, "the body")
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object with the fields of the request")
    return value


def _check_values(contents: Sequence[str], what: str) -> None:
    if sum(content.count(mark) for content in contents for mark in ",[{") > MAX_VALUES:
        raise InvalidRequest(
            f"{what} has more than {MAX_VALUES:,} values, counted by commas and brackets: send "
            "less at once"
        )


def _parse(content: str, what: str) -> Any:
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


def is_single(request: type[Message], fields: Fields) -> bool:
    """Return whether ``image`` gives the only one of a message's ``images``."""
    return fields.get("image") is not None and "images" in request.DESCRIPTOR.fields_by_name


def to_message(request: type[M], fields: Fields, form: bool, most: Most | None = None) -> M:
    """Build the message. Raises the errors of ``arguments.of``."""
    kind = descriptor(request)
    arguments.check_names(kind, fields)
    if form:
        fields = _from_form(kind, fields)
    elif is_single(request, fields):
        fields = {**fields, "image": None, "images": [fields["image"]]}
    return request(**arguments.of(kind, fields, most or {}))


def _from_form(message: Descriptor, fields: Fields) -> Fields:
    """Convert form values to JSON values; files stay bytes, because base64 would only cost time."""
    _check_values([c for cs in fields.values() for c in cs if isinstance(c, str)], "the form")
    values: Fields = {}
    for name, contents in fields.items():
        field = names_of(message)[name]
        several = field.is_repeated and not is_map(field) and name != "image"
        if len(contents) > 1 and not several:
            raise InvalidRequest(f"field {name!r} is given {len(contents)} times: send it once")
        contents = [_form_value(field, name, content) for content in contents]
        if field.is_repeated and not is_map(field):
            values[field.name] = [one for c in contents for one in _several(field, c)]
        else:
            (values[field.name],) = contents
    return values


def _several(field: FieldDescriptor, content: Any) -> list[Any]:
    """Return the values that one part of a form gives; a list of numbers is one area."""
    if not isinstance(content, list):
        return [content]
    is_box = field.message_type is AREA and content and isinstance(content[0], int | float)
    return [content] if is_box else content


def _form_value(field: FieldDescriptor, name: str, content: str | bytes) -> Any:
    if field.message_type is IMAGE:
        is_file = isinstance(content, bytes)
        return {"encoded": content} if is_file else {"key": forms.key(name, str(content))}
    if isinstance(content, bytes):
        raise InvalidRequest(f"field {name!r} is not an image: send it without a file name")
    if field.message_type is not None:
        return _parse(content, f"field {name!r} of the form")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(content.lower(), content)
    return content


def to_json(message: Message) -> dict[str, Any]:
    """Return a reply as JSON values: all fields, zeros included, named as in the proto."""
    values = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _shown(descriptor(message), values)


def _shown(message: Descriptor, value: Any) -> Any:
    """Convert 64-bit integers, which protobuf writes as strings, to numbers, and RLEs to ASCII."""
    if message is RLE:
        value["counts"] = base64.b64decode(value["counts"]).decode("ascii")
    if message is TENSOR and not value["data"]:
        del value["data"]
    for field in message.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 and field.name in value:
            inner = value[field.name]
            value[field.name] = [int(i) for i in inner] if field.is_repeated else int(inner)
        kind, inner = field.message_type, value.get(field.name)
        if kind is not None and inner is not None and not is_map(field):
            several = field.is_repeated
            value[field.name] = [_shown(kind, i) for i in inner] if several else _shown(kind, inner)
    return value
