"""Which value of a JSON body does not fit its field: protobuf's own errors name its types."""

import reprlib
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

UNFIT = (
    json_format.ParseError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""Protobuf's errors for a value of the wrong type: 1e999 as an enum is an OverflowError."""
EXPECTED = {
    FieldDescriptor.CPPTYPE_STRING: "a text",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_INT32: "a whole number",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
}
SHORT = {"Image": "a text of base64", "Point": "[x, y]", "Box": "[x_min, y_min, x_max, y_max]"}
"""The shortest forms of messages; others are objects."""


def first(message: Descriptor, values: dict[str, Any], path: str = "") -> str:
    """Return the first value that does not fit its field of the message, and what would.

    values: by field name; some do not fit.
    """
    for name, value in values.items():
        if not _fits(message, {name: value}):
            return _field(_named(message, name), value, f"{path}.{name}".lstrip("."))
    return f"{path or 'the body'} does not fit the request"


def _field(field: FieldDescriptor, value: Any, path: str) -> str:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return _said(path, value, "an object of texts")
    if field.is_repeated and not isinstance(value, list):
        return _said(path, value, "a list")
    message = cast(Descriptor, field.containing_type)
    if field.is_repeated:
        number, value = next(
            (i, each) for i, each in enumerate(value) if not _fits(message, {field.name: [each]})
        )
        path = f"{path}[{number}]"
    if inner is not None:
        if isinstance(value, dict):
            return first(inner, value, path)
        return _said(path, value, SHORT.get(inner.name, "an object"))
    if field.enum_type is not None:
        return _said(path, value, f"one of {', '.join(v.name for v in field.enum_type.values)}")
    return _said(path, value, EXPECTED[field.cpp_type])


def _fits(message: Descriptor, values: dict[str, Any]) -> bool:
    try:
        json_format.ParseDict(values, cast(Any, message)._concrete_class())
    except UNFIT:
        return False
    return True


def _named(message: Descriptor, name: str) -> FieldDescriptor:
    return next(field for field in message.fields if name in (field.name, field.json_name))


def _said(path: str, value: Any, expected: str) -> str:
    return f"{path} is {reprlib.repr(value)}: expected {expected}"
