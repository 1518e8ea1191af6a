"""Hypothesis strategies: damaged bytes, and messages of every type in the schema."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.fuzz.targets import seeds
from tests.in_process import png

WORDS = (
    "cat",
    "",
    " ",
    "pets",
    "../../etc/passwd",
    "{}",
    "a photo of a {}.",
    "0" * 64,
    "\0",
    "é" * 2000,
)
FILES = (png(1), png(2), png(3)[:200], b"\xff\xd8\xff", b"GIF89a", b"", bytes(1000))
TENSORS = ("float16", "float32", "int8", "float64", "object", "<f4")
SIDES = (0, 1, 2, 4, -1, 2**31, 2**62)
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-4, 4) | st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from(SIDES),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(0, 40, width=32) | st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_EDIT = st.tuples(st.integers(0, 2**16), st.integers(0, 8), st.binary(max_size=8))


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """Draw a valid input of a target with pieces replaced, removed or inserted."""
    data = draw(st.sampled_from(seeds(name)))
    for place, length, piece in draw(st.lists(_EDIT, max_size=4)):
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + length :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Return a strategy for a target: damaged valid inputs, and arbitrary bytes."""
    return damaged(name) | st.binary(max_size=300)


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Return a strategy for messages of a type, with some fields set to valid or odd values."""
    fields = {field.name: _field(field) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _fill(kind, values))


def _fill(kind: type[Message], values: dict[str, Any]) -> Message:
    message = kind()
    for name, value in values.items():
        field = getattr(message, name)
        if isinstance(value, Message):
            field.CopyFrom(value)
        elif isinstance(value, list):
            field.extend(value)
        elif isinstance(value, dict):
            field.update(value)
        else:
            setattr(message, name, value)
    return message


def _field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return st.dictionaries(_text(), _text(), max_size=3)
    one = _nested(kind) if kind is not None else _scalar(field)
    return st.lists(one, max_size=4) if field.is_repeated else one


def _nested(kind: Descriptor) -> st.SearchStrategy[Message]:
    return st.deferred(lambda: messages(GetMessageClass(kind)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.integers(-1, len(field.enum_type.values) + 1)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(FILES) | st.binary(max_size=64)
    if field.name == "dtype":
        return st.sampled_from(TENSORS)
    return NUMBERS[field.cpp_type] if field.cpp_type in NUMBERS else _text()


def _text() -> st.SearchStrategy[str]:
    return st.sampled_from(WORDS) | st.text(max_size=20)
