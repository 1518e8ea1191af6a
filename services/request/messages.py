"""Fields of HTTP bodies to messages: protobuf's JSON mapping, with conveniences.

An image may be a bare base64 string or a data URI; a form may upload it as a file; where a
message takes several images, ``image`` gives a single one; points and boxes may be lists of
coordinates, and an area may be its box. A field with one value may be given only once. An RLE's
counts are ASCII as in COCO's JSON.

Protobuf's own parser has no limits, names its types in its errors, and searches each text for
surrogates.
"""

import binascii
import re
import reprlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, UnsupportedImage
from services.request.bodies import Fields, check_values, parse_json

M = TypeVar("M", bound=Message)


def descriptor(message: type[Message] | Message) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)  # the C implementation has its own class


IMAGE, AREA, RLE = descriptor(pb.Image), descriptor(pb.Area), descriptor(pb.CocoRle)
TENSOR, STRUCT = descriptor(pb.Tensor), descriptor(Struct)
ASK = descriptor(pb.AskRequest)
BOX = descriptor(pb.Box)
COORDINATES = {
    descriptor(pb.Point): ("x", "y"),
    BOX: ("x_min", "y_min", "x_max", "y_max"),
}
"""The fields that a list of numbers gives."""
SHORT = {"Image": "a text of base64", "Point": "[x, y]", "Box": "[x_min, y_min, x_max, y_max]"}
"""The shortest forms of messages; others are objects."""
IMAGE_FILE = re.compile(r"\.(?:jpe?g|png|webp)$", re.IGNORECASE)
ADDRESS = re.compile(r"\s*(https?|ftp|file)://", re.IGNORECASE)
DATA_URI = re.compile(r"data:image/(?:jpeg|jpg|png|webp);base64,", re.IGNORECASE)
LARGEST = 3.4028235e38  # of 32 bits
MAX_DEPTH = 32  # of what heads of one's own get and answer: protobuf reads up to a depth of 100
MAX_WHOLE = 2**53  # beyond, a float64, which JSON and protobuf have, skips whole numbers
Most = Mapping[str, int]
"""The most values of repeated fields, by name."""


def is_single(request: type[Message], fields: Fields) -> bool:
    """Return whether ``image`` gives the only one of a message's ``images``."""
    return fields.get("image") is not None and "images" in request.DESCRIPTOR.fields_by_name


def to_message(request: type[M], fields: Fields, form: bool, most: Most | None = None) -> M:
    """Build the message of a request; ``most`` limits repeated fields.

    Raises InvalidRequest for an unknown field, a value of the wrong type, too many values, or
    fields that exclude each other.
    """
    kind = descriptor(request)
    if kind is ASK:
        fields = _with_parameters(kind, fields, form)
    _check_names(kind, fields)
    if form:
        fields = _from_form(kind, fields)
    elif is_single(request, fields):
        fields = {**fields, "image": None, "images": [fields["image"]]}
    return request(**_arguments(kind, fields, most or {}))


def _with_parameters(message: Descriptor, fields: Fields, form: bool) -> Fields:
    """Move what are no fields of an AskRequest into its parameters."""
    known = {name for name in _names_of(message) if name != "parameters"}
    own = {name: value for name, value in fields.items() if name not in known}
    if form:
        if any(isinstance(value, bytes) for values in own.values() for value in values):
            raise InvalidRequest("a parameter is a file: send it as text, without a file name")
        check_values([text for texts in own.values() for text in texts], "the form")
        own = {name: texts if len(texts) > 1 else texts[0] for name, texts in own.items()}
    given = own.pop("parameters", None) or {}
    if form and isinstance(given, str):
        given = parse_json(given, "field 'parameters' of the form")
    if not isinstance(given, dict):
        raise _misfit("parameters", given, "an object")
    if twice := sorted(given.keys() & own.keys()):
        raise InvalidRequest(f"{twice[0][:80]!r} is given twice, once in parameters: send one")
    return {**{name: fields[name] for name in fields.keys() & known}, "parameters": own | given}


def _struct(_: FieldDescriptor, value: Any) -> Struct:
    """Return an object whose names are the caller's own."""
    _check(value, MAX_DEPTH)
    made = Struct()
    made.update(value)
    return made


def _check(value: Any, most: int) -> None:
    """Raise ValueError for lists or objects in too many others, or a number that would change."""
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ValueError("too large")
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(inner, str) or not hasattr(inner, "__iter__"):
        return
    if not most:
        raise ValueError("too deep")
    for each in inner:
        _check(each, most - 1)


def _from_form(message: Descriptor, fields: Fields) -> Fields:
    """Convert form values to JSON values; files stay bytes, because base64 would only cost time."""
    check_values([c for cs in fields.values() for c in cs if isinstance(c, str)], "the form")
    values: Fields = {}
    for name, contents in fields.items():
        field = _names_of(message)[name]
        if field.message_type is STRUCT:  # which has its values already
            values[name] = contents
            continue
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
        return {"encoded": content} if is_file else _place(name, str(content))
    if isinstance(content, bytes):
        raise InvalidRequest(f"field {name!r} is not an image: send it without a file name")
    if field.message_type is not None:
        return parse_json(content, f"field {name!r} of the form")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(content.lower(), content)
    return content


def _place(name: str, text: str) -> Fields:
    """Return the key that a text gives. Raises InvalidRequest for an address or a file's name."""
    refuse_address(text)
    if IMAGE_FILE.search(text[-6:]):  # not in all of it, which may be long
        raise InvalidRequest(
            f"field {name[:80]!r} is the name {text[-80:]!r}, expected the file itself: "
            f"curl sends it with -F {name}=@FILE"
        )
    return {"key": text}


def refuse_address(text: str) -> None:
    """Raise InvalidRequest for the address of an image: the service opens none."""
    if ADDRESS.match(text):
        raise InvalidRequest(
            f"{text[:80]!r} is an address, and images are not fetched: send the file itself, or "
            "the key of one sent earlier"
        )


def _arguments(message: Descriptor, value: Any, most: Most, path: str = "") -> dict[str, Any]:
    """Return the keyword arguments of a message, and of the messages in it.

    One walk, whose errors name the first wrong value; ``path`` is its name. Raises as
    ``to_message`` does.
    """
    value = _expand(message, value)
    if not isinstance(value, dict):
        raise _misfit(path, value, SHORT.get(message.name, "an object"))
    _check_names(message, value)
    known, found = _names_of(message), {}
    for name, inner in value.items():
        if inner is not None:
            field = known[name]
            found[field.name] = _argument(field, inner, most, f"{path}.{name}" if path else name)
    if message is BOX and not {"x_max", "y_max"} <= found.keys():  # the others may be left out as 0
        lacks = ", ".join(name for name in COORDINATES[BOX] if name not in found)
        raise InvalidRequest(f"{path or 'the box'} lacks {lacks}: expected {SHORT['Box']}")
    return found


def _expand(message: Descriptor, value: Any) -> Any:
    """Return the object that a short form of an image, a point, a box or an area stands for."""
    if message is IMAGE and isinstance(value, str):
        refuse_address(value)
        return {"encoded": value}
    if message is AREA and isinstance(value, list):
        return {"box": value}
    if message not in COORDINATES or not isinstance(value, list):
        return value
    names = COORDINATES[message]
    if len(value) != len(names):
        raise InvalidRequest(
            f"a {message.name.lower()} has {len(value)} numbers, expected {len(names)}: "
            f"[{', '.join(names)}]"
        )
    return dict(zip(names, value, strict=True))


@cache
def _names_of(message: Descriptor) -> dict[str, FieldDescriptor]:
    """Return the fields by both of their JSON names, such as ``top_k`` and ``topK``."""
    known = {name: field for field in message.fields for name in (field.name, field.json_name)}
    return known | ({"image": known["images"]} if "images" in known else {})


def _check_names(message: Descriptor, values: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for an unknown name, or names that exclude each other."""
    known, given = _names_of(message), dict[str, str]()
    for name, value in values.items():
        if (field := known.get(name)) is None:
            fields = ", ".join(message.fields_by_name).replace("images", "image or images")
            raise InvalidRequest(f"unknown field {name[:80]!r}; the fields are {fields}")
        group = (field.containing_oneof or field).full_name
        if value is not None and (other := given.setdefault(group, name)) != name:
            raise InvalidRequest(f"{other!r} and {name!r} exclude each other: send one of them")


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _argument(field: FieldDescriptor, value: Any, most: Most, path: str) -> Any:
    if not field.is_repeated:
        return _one(field, value, most, path)
    if is_map(field):
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise _misfit(path, value, "an object of texts")
    elif not isinstance(value, list):
        raise _misfit(path, value, "a list")
    if len(value) > (limit := most.get(field.name, len(value))):
        what = f"pairs of {field.name}" if isinstance(value, dict) else field.name
        owner = path.rpartition(".")[0] or "one request"
        raise InvalidRequest(f"{len(value):,} {what} in {owner}, at most {limit:,}: send fewer")
    if isinstance(value, dict):
        return value
    return [_one(field, each, most, f"{path}[{index}]") for index, each in enumerate(value)]


def _one(field: FieldDescriptor, value: Any, most: Most, path: str) -> Any:
    if field.message_type not in (None, STRUCT):
        return _arguments(field.message_type, value, most, path)
    convert, expected = SCALARS[field.cpp_type]
    try:
        return (_bytes if field.type == FieldDescriptor.TYPE_BYTES else convert)(field, value)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        names = ", ".join(one.name for one in field.enum_type.values) if field.enum_type else ""
        raise _misfit(path, value, expected + names) from error


def _misfit(path: str, value: Any, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{path or 'the body'} is {reprlib.repr(value)}: expected {expected}")


def _same(field: FieldDescriptor, value: Any) -> str | bool:
    if not isinstance(value, str if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else bool):
        raise TypeError
    return value


def _bytes(field: FieldDescriptor, value: Any) -> bytes:
    """Return what base64 stands for; an RLE is ASCII, and a file of a form is bytes already."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError
    if field.containing_type is RLE:
        return value.encode()
    if field.containing_type is IMAGE and value[:5].lower() == "data:":
        head = DATA_URI.match(value)
        if head is None:
            raise UnsupportedImage(
                f"{field.name!r} is not a data URI of the form data:image/jpeg;base64,… (or png, "
                "webp): send one of these, or plain base64"
            )
        value = value[head.end() :]
    digits = value.rstrip("=")
    padding = "=" * (-len(digits) % 4)
    try:
        if value not in (digits, digits + padding):
            raise ValueError
        encoded = (digits + padding).encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:
        raise InvalidRequest(
            f"{field.name!r} is not base64: send letters, digits, + and / (or - and _), without "
            "line breaks, and = only as padding at the end"
        ) from error


def _integer(field: FieldDescriptor, value: Any) -> int:
    """Return a whole number; a text, and a float such as 5.0, may give it."""
    if isinstance(value, str):
        value = int(value) if value.lstrip("-").isdecimal() else _number(field, value)
    end = 2 ** (63 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 31)
    if isinstance(value, bool) or int(value) != value or not -end <= value < end:
        raise ValueError
    return int(value)


def _number(field: FieldDescriptor, value: Any) -> float:
    is_python = isinstance(value, bool) or (isinstance(value, str) and "_" in value)
    if is_python or not abs(number := float(value)) <= LARGEST:  # nor NaN
        raise ValueError
    return number


def _choice(field: FieldDescriptor, value: Any) -> int:
    found = cast(EnumDescriptor, field.enum_type).values_by_name.get(value)
    return found.number if found else _integer(field, value)


SCALARS: dict[int, tuple[Callable[[FieldDescriptor, Any], Any], str]] = {
    FieldDescriptor.CPPTYPE_STRING: (_same, "a text"),
    FieldDescriptor.CPPTYPE_BOOL: (_same, "true or false"),
    FieldDescriptor.CPPTYPE_INT32: (_integer, "a whole number"),
    FieldDescriptor.CPPTYPE_INT64: (_integer, "a whole number"),
    FieldDescriptor.CPPTYPE_FLOAT: (_number, "a number"),
    FieldDescriptor.CPPTYPE_ENUM: (_choice, "one of "),
    FieldDescriptor.CPPTYPE_MESSAGE: (
        _struct,
        "an object of texts, lists and numbers, whole ones up to 2**53",
    ),
}
"""The conversion of each type, and what fits it."""
