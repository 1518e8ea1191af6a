"""Conversion between HTTP bodies and messages: protobuf's JSON mapping, with conveniences.

An image may be a bare base64 string or a data URI; a form may upload it as a file; where a message
takes several images, ``image`` gives a single one; points and boxes may be lists of coordinates,
and an area may be its box. Text is UTF-8, and a field with one value may be given only once. An
RLE's counts are ASCII as in COCO's JSON. In replies, 64-bit integers are numbers, and a tensor
without data has no ``data``.
"""

import asyncio
import base64
import json
import re
import string
from collections import Counter, deque
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from python_multipart.multipart import parse_options_header
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from samclip_core.errors import InvalidRequest, UnsupportedImage
from services.request import forms, misfits
from services.request.arrival import Arrivals, limited

Fields = dict[str, Any]
"""The members of a JSON object, or all values of each name in a form, with files as bytes."""

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def descriptor(message: type[Message] | Message) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)  # the C implementation has its own class


IMAGE = descriptor(pb.Image)
AREA, RLE, TENSOR = descriptor(pb.Area), descriptor(pb.CocoRle), descriptor(pb.Tensor)
COORDINATES = {
    descriptor(pb.Point): ("x", "y"),
    descriptor(pb.Box): ("x_min", "y_min", "x_max", "y_max"),
}
"""The fields that a list of numbers gives."""
MAX_VALUES = 1_000_000
"""Values in one JSON text: each becomes an object of some hundred bytes."""
HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate, which is a character only as half of a pair."""
BASE64 = (string.ascii_letters + string.digits + "+/-_").encode()
DATA_URI = re.compile(r"data:image/(?:jpeg|jpg|png|webp);base64,", re.IGNORECASE)


async def read(
    request: Request,
    limit: int,
    most_parts: int,
    arrivals: Arrivals,
    understand: Callable[[Fields, bool], T],
) -> T:
    """Read the body and return ``understand(fields, is_form)``, which runs in a worker thread.

    Raises the errors of ``understand``; ImageTooLarge beyond ``limit`` bytes, without reading more;
    RequestTooSlow for a body slower than the pace of ``arrivals``, Overloaded if those are full;
    UnsupportedImage for a body that is compressed, or neither JSON nor a form; InvalidRequest for
    one that is malformed, or a form of more than ``most_parts`` parts.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise UnsupportedImage(
            f"the body has the content-type {kind or 'none'!r}, which is unsupported: "
            "send multipart/form-data or application/json"
        )
    chunks = await whole(request, limit, arrivals)

    def work() -> T:
        if kind == "application/json":
            return understand(parse_object(b"".join(chunks), content_type), False)
        return understand(forms.parse(chunks, content_type, most_parts), True)

    return await asyncio.to_thread(work)


async def whole(request: Request, limit: int, arrivals: Arrivals) -> deque[bytes]:
    """Return the chunks of the body. A body that has already arrived needs no slot.

    Raises ImageTooLarge, RequestTooSlow and Overloaded as ``read`` does, and UnsupportedImage for
    a body that is compressed.
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
    if first.get("more_body"):
        with arrivals.place():
            chunks.extend([chunk async for chunk in Request(request.scope, receive).stream()])
    return chunks


def parse_object(body: bytes, content_type: str = "") -> Fields:
    """Return the members of a JSON object in UTF-8. Raises InvalidRequest."""
    _, parameters = parse_options_header(content_type)
    forms.check_charset(parameters.get(b"charset", b"utf-8").decode("latin-1"), "the body")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error.reason}") from error
    value = _parse(text, "the body")
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object with the fields of the request")
    return value


def _parse(content: str, what: str) -> Any:
    if sum(map(content.count, ",[{")) > MAX_VALUES:
        raise InvalidRequest(f"{what} has more than {MAX_VALUES:,} values: send less at once")
    try:
        value = json.loads(content, object_pairs_hook=_members)
        if HALF_A_PAIR.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} has half of a surrogate pair: send both halves") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error
    return value


def _members(pairs: list[tuple[str, Any]]) -> Fields:
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequest(f"{twice[:80]!r} is given more than once: send it once")
    return members


def knows(request: type[Message], fields: Fields) -> bool:
    """Return whether a message has all these fields."""
    return all(_field(descriptor(request), name) for name in fields)


def is_single(request: type[Message], fields: Fields) -> bool:
    """Return whether ``image`` gives the only one of a message's ``images``."""
    field = _field(descriptor(request), "image")
    return fields.get("image") is not None and field is not None and field.name == "images"


@cache
def _named(message: Descriptor) -> dict[str, FieldDescriptor]:
    """Return the fields by both of their JSON names, such as ``top_k`` and ``topK``."""
    return {name: field for field in message.fields for name in (field.name, field.json_name)}


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    known = _named(message)
    return known.get(name) or (known.get("images") if name == "image" else None)


def to_message(request: type[M], fields: Fields, form: bool) -> M:
    """Build the message.

    Raises InvalidRequest for an unknown field, a value of the wrong type, or fields that exclude
    each other.
    """
    files: dict[int, bytes] = {}
    _check_alternatives(descriptor(request), fields)
    if form:
        values = _from_form(descriptor(request), fields, files)
    elif is_single(request, fields):
        values = {**fields, "images": [fields["image"]]}
        del values["image"]
    else:
        absent = {"image"} if _field(descriptor(request), "image") else set()  # if null
        values = {n: v for n, v in fields.items() if v is not None or n not in absent}
    values = _expand(descriptor(request), values)
    try:
        message = json_format.ParseDict(values, request())
    except misfits.UNFIT as error:
        raise InvalidRequest(misfits.first(descriptor(request), values)) from error
    several = "images" in request.DESCRIPTOR.fields_by_name
    for index, content in files.items():
        image = message.images[index] if several else message.image  # type: ignore[attr-defined]
        image.encoded = content
    return message


def _check_alternatives(message: Descriptor, values: Fields) -> None:
    """Raise InvalidRequest if two names mean one field, or two fields exclude each other."""
    given: dict[str, list[str]] = {}
    for name, value in values.items():
        field = _field(message, name)
        if field is not None and value is not None:
            group = field.containing_oneof or field
            given.setdefault(group.full_name, []).append(name)
    for names in given.values():
        if len(names) > 1:
            raise InvalidRequest(
                f"{' and '.join(map(repr, names))} exclude each other: send one of them"
            )


def _from_form(message: Descriptor, fields: Fields, files: dict[int, bytes]) -> Fields:
    """Convert form values to JSON values, without the files: base64 would only cost time.

    ``files`` receives each file by its index among the images; the images get empty messages.
    """
    values: Fields = {}
    for name, contents in fields.items():
        field = _field(message, name)
        if field is None:
            raise _unknown(message, name)
        several = field.is_repeated and not _is_map(field) and name != "image"
        if len(contents) > 1 and not several:
            raise InvalidRequest(f"field {name!r} is given {len(contents)} times: send it once")
        if field.message_type is IMAGE:
            files.update((i, c) for i, c in enumerate(contents) if isinstance(c, bytes))
            contents = [{"key": forms.key(name, c)} if isinstance(c, str) else {} for c in contents]
        else:
            contents = [_form_value(field, name, content) for content in contents]
        if field.is_repeated and not _is_map(field):
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


def _unknown(message: Descriptor, name: str) -> InvalidRequest:
    known = ", ".join(message.fields_by_name).replace("images", "image or images")
    return InvalidRequest(f"unknown field {name[:80]!r}; the fields are {known}")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _form_value(field: FieldDescriptor, name: str, content: str | bytes) -> Any:
    if isinstance(content, bytes):
        raise InvalidRequest(f"field {name!r} is not an image: send it without a file name")
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _parse(content, f"field {name!r} of the form")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(content.lower(), content)
    return content


def _expand(message: Descriptor, value: Any) -> Any:
    """Convert the short forms of images, points, boxes and areas; check names and base64."""
    if message is IMAGE and isinstance(value, str):
        value = {"encoded": value}
    if message is AREA and isinstance(value, list):
        value = {"box": value}
    if message in COORDINATES and isinstance(value, list):
        names = COORDINATES[message]
        if len(value) != len(names):
            raise InvalidRequest(
                f"a {message.name.lower()} has {len(value)} numbers, expected {len(names)}: "
                f"[{', '.join(names)}]"
            )
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict) and not message.GetOptions().map_entry:
        for name in value:
            if _field(message, name) is None:
                raise _unknown(message, name)
        _check_alternatives(message, value)
        value = {name: _base64(message, name, inner) for name, inner in value.items()}
    return _map_messages(message, value, _expand)


def _base64(message: Descriptor, name: str, value: Any) -> Any:
    """Return the base64 of a bytes field, which is ASCII in an RLE; other values are unchanged."""
    field = _named(message).get(name)
    if field is None or field.type != FieldDescriptor.TYPE_BYTES or not isinstance(value, str):
        return value
    if message is RLE:
        return base64.b64encode(value.encode()).decode()
    if message is IMAGE and value[:5].lower() == "data:":
        head = DATA_URI.match(value)
        if head is None:
            raise UnsupportedImage(
                f"{name!r} is not a data URI of the form data:image/jpeg;base64,… (or png, webp): "
                "send one of these, or plain base64"
            )
        value = value[head.end() :]
    digits = value.rstrip("=")
    padding = len(value) - len(digits)
    whole = len(digits) % 4 != 1 and padding in (0, -len(digits) % 4)
    if not whole or not digits.isascii() or digits.encode().translate(None, BASE64):
        raise InvalidRequest(
            f"{name!r} is not base64: send letters, digits, + and / (or - and _), without line "
            "breaks, and = only as padding at the end"
        )
    return value


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
    return _map_messages(message, value, _shown)


def _map_messages(message: Descriptor, value: Any, change: Callable[[Descriptor, Any], Any]) -> Any:
    """Apply ``change`` to the messages directly inside a message."""
    if not isinstance(value, dict) or message.GetOptions().map_entry:
        return value
    changed = dict(value)
    for name, field in _named(message).items():
        kind, inner = field.message_type, value.get(name)
        if kind is None or inner is None or kind.GetOptions().map_entry:
            continue
        if field.is_repeated and isinstance(inner, list):
            changed[name] = [change(kind, one) for one in inner]
        elif not field.is_repeated:
            changed[name] = change(kind, inner)
    return changed
