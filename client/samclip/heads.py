"""Requests to heads of one's own, and their answers."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from PIL import Image

from samclip import wire
from samclip.v1 import samclip_pb2 as pb

_NAME = re.compile(r"[a-z0-9_-]{1,48}")


@dataclass(frozen=True)
class ServedHead:
    """A head of one's own that the service has, by its name in requests.

    parameters: JSON schema of its parameters, whose names are below "properties". outputs: those of
    the image encoder that it needs, as ``Photo.features`` names them. classes: those that its
    answers name, if they are fixed. reason: why it does not answer now; "" if it does.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    outputs: Sequence[str]
    classes: Sequence[str] = ()
    reason: str = ""


def request(head: str, parameters: Mapping[str, Any], encoding: str) -> pb.AskRequest:
    """Return a request without its image. Raises TypeError, which names the wrong parameter."""
    form = wire.choice(pb.MaskEncoding, "encoding", encoding)
    made = wire.request(pb.AskRequest, head=head, encoding=form)
    for name, value in parameters.items():
        try:
            made.parameters[name] = value
        except (TypeError, ValueError) as error:
            found = f"{value!r:.60} ({type(value).__name__})"
            expected = "a text, a number, True, False, None, or a list or dictionary of these"
            raise TypeError(f"{name} is {found}: expected {expected}") from error
    return made


def metadata(asked: Any) -> list[tuple[str, str]]:
    """Return the header by which the front door sends a request to its head at once."""
    named = isinstance(asked, pb.AskRequest) and _NAME.fullmatch(asked.head)
    return [("x-samclip-head", asked.head)] if named else []


def answer(reply: pb.AskResponse, photograph: bytes) -> dict[str, Any]:
    """Return what the head answered, by names in alphabetical order: a message has no order."""
    parts: dict[str, Sequence[Any]] = {
        "$mask": wire.masks(reply.masks, reply.image, photograph),
        "$tensor": [wire.tensor_to_array(tensor) for tensor in reply.tensors],
        "$picture": [Image.open(io.BytesIO(png)) for png in reply.pictures],
    }
    found: dict[str, Any] = with_parts(json_format.MessageToDict(reply.result), parts)
    return found


def with_parts(value: Any, parts: Mapping[str, Sequence[Any]]) -> Any:
    """Return a value of an answer with its parts, such as masks, where it has their numbers."""
    match value:
        case dict() if len(value) == 1 and (kind := next(iter(value))) in parts:
            return parts[kind][int(value[kind])]
        case dict():
            return {name: with_parts(value[name], parts) for name in sorted(value)}
        case list():
            return [with_parts(each, parts) for each in value]
        case float() if value.is_integer():
            return int(value)  # a message has no whole numbers
    return value


def listed(reply: pb.ListHeadsResponse) -> list[ServedHead]:
    return [
        ServedHead(
            name=head.name,
            description=head.description,
            parameters=with_parts(json_format.MessageToDict(head.parameters), {}),
            outputs=tuple(pb.Output.Name(output).lower() for output in head.outputs),
            classes=tuple(head.classes),
            reason=head.reason,
        )
        for head in reply.heads
    ]
