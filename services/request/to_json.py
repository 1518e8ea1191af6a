"""Replies as JSON: protobuf's mapping, with 64-bit integers as numbers and RLEs as in COCO's JSON.

A tensor without data has no ``data``.
"""

import base64
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.request.messages import RLE, STRUCT, TENSOR, descriptor, is_map


def to_json(message: Message) -> dict[str, Any]:
    """Return a reply as JSON values: all fields, zeros included, named as in the proto."""
    values = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _shown(descriptor(message), values)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [*map(_whole, value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(message: Descriptor, value: Any) -> Any:
    """Convert 64-bit integers, which protobuf writes as strings, to numbers, and RLEs to ASCII.

    A caller's own objects have whole numbers as such.
    """
    if message is STRUCT:
        return _whole(value)
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
