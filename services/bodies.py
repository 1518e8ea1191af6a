"""HTTP bodies to messages and back: protobuf's JSON mapping, with three conveniences.

An image may be a bare base64 string; a form may upload it as a file; and where a message takes
several images, ``image`` is the only one. Integers of 64 bits are numbers in replies.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message as Event
from starlette.types import Receive

from samclip_core.errors import ImageTooLarge, InvalidRequest, UnsupportedImage

Fields = dict[str, Any]
"""Of a JSON object, its members; of a form, for each name all its values, files as bytes."""

M = TypeVar("M", bound=Message)


def descriptor(message: type[Message] | Message) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)  # there is another one in C, of the same kind


IMAGE = descriptor(pb.Image)
MAX_VALUES = 1_000_000
"""In one piece of JSON: each becomes an object of some hundred bytes, base64 one in all."""


async def read(request: Request, limit: int) -> tuple[Fields, bool]:
    """Return the fields of the body, and whether they are a form's.

    Raises ImageTooLarge beyond ``limit`` bytes, before more is read; UnsupportedImage for a body
    that is compressed, or neither JSON nor a form; InvalidRequest for one that is broken.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedImage(
            f"the body has the content-encoding {encoding[:80]!r}, expected none: "
            "send it uncompressed, without this header"
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    request = Request(request.scope, _limited(request.receive, limit))
    if kind == "application/json":
        return await asyncio.to_thread(_object, await request.body()), False
    if kind == "multipart/form-data":
        return await _form(request, limit), True
    raise UnsupportedImage(
        f"a body of type {kind or 'none'!r} is not read here: "
        "send multipart/form-data or application/json"
    )


def _limited(receive: Receive, limit: int) -> Receive:
    left = limit

    async def counted() -> Event:
        nonlocal left
        event = await receive()
        left -= len(event.get("body", b""))
        if left < 0:
            raise ImageTooLarge(f"the body has more than {limit:,} bytes: send less at once")
        return event

    return counted


def _object(body: bytes) -> Fields:
    value = _parse(body, "the body")
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object with the fields of the request")
    return value


def _parse(content: bytes, what: str) -> Any:
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidRequest(f"{what} has more than {MAX_VALUES:,} values: send less at once")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error


async def _form(request: Request, limit: int) -> Fields:
    fields: Fields = {}
    try:
        async with request.form(max_part_size=limit) as form:
            for name, value in form.multi_items():
                content = await value.read() if isinstance(value, UploadFile) else value
                fields.setdefault(name, []).append(content)
    except (HTTPException, MultiPartException) as error:
        reason = error.detail if isinstance(error, HTTPException) else error.message
        raise InvalidRequest(f"the form is broken: {reason}") from error
    return fields


def knows(request: type[Message], fields: Fields) -> bool:
    """Tell whether a message has all these fields."""
    return {_field_name(descriptor(request), name) for name in fields} <= set(
        request.DESCRIPTOR.fields_by_name
    )


def is_single(request: type[Message], fields: Fields) -> bool:
    """Tell whether ``image`` stands for the only one of a message's ``images``."""
    return "image" in fields and _field_name(descriptor(request), "image") == "images"


def _field_name(message: Descriptor, name: str) -> str:
    several = name == "image" and name not in message.fields_by_name
    return "images" if several and "images" in message.fields_by_name else name


def to_message(request: type[M], fields: Fields, form: bool) -> M:
    """Make the message. Raises InvalidRequest for an unknown field or a value of another type."""
    files: list[bytes] = []
    if form:
        values = _from_form(descriptor(request), fields, files)
    elif is_single(request, fields):
        values = {**fields, "images": [fields["image"]]}
        del values["image"]
    else:
        values = fields
    try:
        message = json_format.ParseDict(_expand(descriptor(request), values), request())
    except (json_format.ParseError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"the body does not fit the request: {error}") from error
    for content in files:
        if "images" in request.DESCRIPTOR.fields_by_name:
            message.images.add(encoded=content)  # type: ignore[attr-defined]
        else:
            message.image.encoded = content  # type: ignore[attr-defined]
    return message


def _from_form(message: Descriptor, fields: Fields, files: list[bytes]) -> Fields:
    """Read form values as JSON ones, but put the files aside: base64 would only cost time."""
    values: Fields = {}
    for name, contents in fields.items():
        field = message.fields_by_name.get(_field_name(message, name))
        if field is None:
            known = ", ".join(message.fields_by_name)
            raise InvalidRequest(f"unknown field {name[:80]!r}; the fields are {known}")
        if field.message_type is IMAGE:
            files += [content for content in contents if isinstance(content, bytes)]
            contents = [{"key": content} for content in contents if isinstance(content, str)]
        else:
            contents = [_form_value(field, name, content) for content in contents]
        if field.is_repeated and not _is_map(field):
            nested = [c if isinstance(c, list) else [c] for c in contents]
            values[field.name] = [value for group in nested for value in group]
        elif contents:
            values[field.name] = contents[-1]
    return values


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _form_value(field: FieldDescriptor, name: str, content: str | bytes) -> Any:
    if isinstance(content, bytes):
        raise InvalidRequest(f"field {name!r} is not an image: send it without a file name")
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _parse(content.encode(), f"field {name!r} of the form")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(content.lower(), content)
    return content


def _expand(message: Descriptor, value: Any) -> Any:
    """Put bare strings where an image is meant into its ``encoded``."""
    if message is IMAGE and isinstance(value, str):
        return {"encoded": value}
    return _map_messages(message, value, _expand)


def to_json(message: Message) -> dict[str, Any]:
    """Return a reply as JSON values: all fields, zero or not, named as in the proto."""
    values = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(descriptor(message), values)


def _numbers(message: Descriptor, value: Any) -> Any:
    """Make the strings of 64-bit integers, which JSON's own rules do not need, numbers."""
    for field in message.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 and field.name in value:
            inner = value[field.name]
            value[field.name] = [int(i) for i in inner] if field.is_repeated else int(inner)
    return _map_messages(message, value, _numbers)


def _map_messages(message: Descriptor, value: Any, change: Callable[[Descriptor, Any], Any]) -> Any:
    """Apply ``change`` to the messages directly inside of one."""
    if not isinstance(value, dict) or message.GetOptions().map_entry:
        return value
    changed = dict(value)
    for field in message.fields:
        kind, inner = field.message_type, value.get(field.name)
        if kind is None or inner is None or kind.GetOptions().map_entry:
            continue
        if field.is_repeated and isinstance(inner, list):
            changed[field.name] = [change(kind, one) for one in inner]
        elif not field.is_repeated:
            changed[field.name] = change(kind, inner)
    return changed
