"""The parameters of a head of one's own: from a request's values to the head's class."""

import cmath
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from itertools import chain
from math import isfinite
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from samclip_core.answers.head import TAKEN, Head
from samclip_core.errors import InvalidRequest
from services.request.bodies import parse_json
from services.request.limits import check_most

NONE: dict[str, Any] = {"type": "object", "properties": {}}
"""The schema of a head without parameters."""
MAX_BYTES = 2**21
"""Of the parameters of one request: up to half a million values, a second of work."""
MOST_WHOLE = 2**64  # as large as ids are
_PLAIN = {str, bool, type(None)}
MAX_ERRORS = 100  # of values that do not fit; beyond, the message has only their number


class Parameters:
    """Reads the parameters of one head; ``schema`` describes them in JSON Schema.

    ``listed`` is the schema as a message.
    """

    def __init__(self, head: Head):
        """Raise TypeError if the head's class of parameters has no schema that can be listed."""
        self.adapter: TypeAdapter[Any] | None = None
        self.schema, self.listed = NONE, Struct()
        try:
            if head.Parameters is not None:
                self.adapter = TypeAdapter(head.Parameters)
                # A default may be infinite, which JSON cannot say.
                text = json.dumps(self.adapter.json_schema())
                self.schema = json.loads(text, parse_constant=lambda _: None)
                self.schema |= self._named(self.schema)  # one that holds itself is among its parts
                self.schema["x-order"] = [*self.known]  # which protobuf does not keep in objects
            self.listed.update(self.schema)
        except (PydanticUserError, ValueError, TypeError, OverflowError) as error:
            raise TypeError(
                f"{type(head).__name__}.Parameters has no JSON schema: expected a Pydantic model "
                f"or a dataclass ({str(error).partition(chr(10))[0]})"
            ) from error
        if taken := sorted(TAKEN.intersection(self.known)):
            raise TypeError(
                f"{type(head).__name__}.Parameters has the alias {taken[0]!r}, which every request "
                "has: choose another name"
            )

    @property
    def known(self) -> Mapping[str, Any]:
        """The schema of each parameter by its name."""
        found: Mapping[str, Any] = self.schema.get("properties", {})
        return found

    def read(self, sent: Message) -> Any:
        """Return an instance of the head's Parameters, None without any. Raises InvalidRequest.

        Texts stand for other values too, since a form and a command line have only texts.
        """
        check_most(sent.ByteSize(), "the parameters have {:,} bytes", MAX_BYTES, "send less")
        try:
            values = {
                name: self._shaped(name, v) for name, v in json_format.MessageToDict(sent).items()
            }
        except (json_format.Error, ValueError) as error:
            raise InvalidRequest("a parameter is not finite: send a number") from error
        unknown = sorted(values.keys() - self.known.keys())
        if unknown and not self.schema.get("additionalProperties"):
            raise InvalidRequest(
                f"unknown parameter {unknown[0][:80]!r}: the head has "
                f"{', '.join(self.known) or 'none'}"
            )
        if self.adapter is None:
            return None
        try:
            parameters = self.adapter.validate_python(values)
            _check_numbers(parameters)
            return parameters
        except RecursionError as error:
            raise InvalidRequest("the parameters are nested too deeply: send less") from error
        except ValidationError as error:
            if (count := error.error_count()) > MAX_ERRORS:  # each is an object in the list
                raise InvalidRequest(f"{count:,} values of the parameters do not fit") from error
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(map(str, first["loc"])) or "the parameters"
            raise InvalidRequest(f"{name}: {first['msg']}") from error

    def _shaped(self, name: str, value: Any) -> Any:
        """Return the list or the object that a text stands for."""
        kinds = self._kinds(self.known.get(name, {}))
        if not kinds & {"array", "object"} or "string" in kinds or not isinstance(value, str):
            return value
        if value.lstrip()[:1] in ("[", "{"):
            return parse_json(value, f"parameter {name!r}")
        return [value] if "array" in kinds else value

    def _named(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a schema refers to, or else itself."""
        name = schema.get("$ref", "").rpartition("/")[2]
        found: Mapping[str, Any] = self.schema["$defs"][name] if name else schema
        return found

    def _kinds(self, schema: Mapping[str, Any]) -> set[str]:
        """Return the JSON types that values of a schema may have."""
        schema = self._named(schema)
        some = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return {schema.get("type", "")}.union(*map(self._kinds, some))


def _check_numbers(value: Any, name: str = "") -> None:
    """Raise InvalidRequest for a number beyond what a head expects: texts become numbers too."""
    if isinstance(value, int) and abs(value) >= MOST_WHOLE:
        raise InvalidRequest(f"{name}: the whole number is beyond 64 bits: send a smaller one")
    if isinstance(value, float | complex | Decimal) and not cmath.isfinite(value):
        raise InvalidRequest(f"{name} is not finite: send a number")
    if isinstance(value, Iterator):
        raise TypeError(f"{name} is an Iterable, whose values nobody checks: make it a list")
    for key, part in _parts(value):
        kind = type(part)
        if kind not in _PLAIN and (kind is not float or not isfinite(part)):
            _check_numbers(part, f"{name}.{key}".lstrip("."))


def _parts(value: Any) -> Iterable[tuple[object, Any]]:
    """Yield what a value holds, with its place; not the defaults, which are the head's own."""
    if isinstance(value, BaseModel):
        yield from ((field, getattr(value, field)) for field in value.model_fields_set)
    elif is_dataclass(value):
        for field in fields(value):
            if (part := getattr(value, field.name, None)) is not field.default:
                yield field.name, part
    elif isinstance(value, Mapping):
        yield from chain(enumerate(value), value.items())
    elif isinstance(value, Collection) and not isinstance(value, str | bytes | bytearray):
        yield from enumerate(value)
