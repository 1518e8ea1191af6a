"""The OpenAPI document, generated from the routes, the messages and the comments of the proto."""

import base64
import io
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from PIL import Image
from samclip.rpcs import RPCS

from samclip_core import licence
from services.gateway import descriptions
from services.request import overlay
from services.request.http import LINES
from services.request.messages import AREA, COORDINATES, descriptor
from services.request.routes import ROUTES, Route

SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
}
PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string", "description": "about:blank: title and status say all"},
        "title": {"type": "string", "description": "the kind of error in a few words"},
        "status": {"type": "integer", "description": "the HTTP status"},
        "detail": {
            "type": "string",
            "description": "what happened, what was expected, what to do",
        },
        "request_id": {"type": "string", "description": "the name of this request in the logs"},
    },
}
KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
PAGES = {
    "/healthz": "Liveness: the service responds.",
    "/readyz": "Readiness: the models are warm. Also reports the state of each dependency.",
    "/metrics": "Metrics samclip_* of all replicas, in Prometheus' text format.",
}


DESCRIPTIONS = descriptions.read()


def _small_image() -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


_IMAGE, _COLLECTION = {"image": _small_image()}, {"collection": "example"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Embed": {**_IMAGE, "outputs": ["CLIP_POOLED"], "inline": True},
    "Classify": {**_IMAGE, "labels": ["a ball", "a cat"], "areas": [[8, 8, 56, 56]]},
    "Segment": {
        **_IMAGE,
        "prompts": [
            {"points": [[32, 32]]},
            {"box": [8, 8, 56, 56]},
            {"text": "a ball", "not_texts": ["a moon"]},
        ],
        "min_score": 0.4,
    },
    "SegmentEverything": {**_IMAGE, "points_per_side": 4, "labels": ["a ball", "a cat"]},
    "SegmentText": {**_IMAGE, "labels": ["a ball", "a wall"]},
    "Explain": {**_IMAGE, "label": "a ball", "others": ["a wall"]},
    "Index": {**_COLLECTION, "items": [{"id": "ball", **_IMAGE, "metadata": {"by": "me"}}]},
    "Search": {
        **_COLLECTION,
        **_IMAGE,
        "area": [8, 8, 56, 56],
        "with_text": "a ball",
        "top_k": 3,
    },
    "Delete": {**_COLLECTION, "ids": ["ball"]},
    "ListItems": {**_COLLECTION, "limit": 10},
    "PutConcept": {"name": "my ball", "examples": [{**_IMAGE, "box": [8, 8, 56, 56]}]},
    "DeleteConcept": {"name": "my ball"},
}
"""Requests that say more than the required fields; those of a collection follow
Index, and DeleteConcept follows PutConcept."""


def example(route: Route) -> dict[str, Any]:
    """Return a request that the service answers: that of EXAMPLES, or the required fields alone."""
    if route.rpc in EXAMPLES:
        return EXAMPLES[route.rpc]
    message, found = descriptor(route.request), dict[str, Any]()
    for name in _required(message).get("required", ()):
        field = message.fields_by_name[name]
        value = _IMAGE["image"] if field.message_type else "a ball"
        found[name] = [value] if field.is_repeated else value
    return found


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all services."""
    schemas: dict[str, Any] = {"Problem": PROBLEM}
    paths: dict[str, Any] = {}
    for application in sorted(ROUTES, key=lambda name: name == "backbone"):  # the heads first
        for route in ROUTES[application]:
            paths[route.path] = {"post": _operation(application, route, schemas)}
    for path, summary in PAGES.items():
        responses = {"200": {"description": "OK"}, "503": {"description": "Unavailable"}}
        paths[path] = {"get": {"tags": ["service"], "summary": summary, "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "SAM-CLIP Serve", "version": "v1", "description": licence.EDGE},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": KEYS},
        "security": [{}, *({name: []} for name in KEYS)],  # {}: keys are optional
    }


def _operation(application: str, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    request = _reference(descriptor(route.request), schemas)
    reply = _reference(descriptor(route.response), schemas)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    content: dict[str, Any] = {"application/json": {"schema": reply}}
    if route.rpc in overlay.DRAWN:
        content["image/png"] = {"schema": {"type": "string", "contentMediaType": "image/png"}}
    if route.stream:
        content[LINES] = {"schema": _reference(RPCS[route.stream].output_type, schemas)}
    return {
        "tags": [application],
        "operationId": route.rpc,
        "summary": route.summary,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": request, "example": example(route)},
                "multipart/form-data": {"schema": _form(descriptor(route.request), schemas)},
            },
        },
        "responses": {
            "200": {"description": "The response", "content": content},
            "default": {"description": "An error", "content": problem},
        },
    }


def _reference(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if message.name not in schemas:
        schemas[message.name] = {}  # placeholder that ends recursion
        properties = {field.name: _described(field, schemas) for field in message.fields}
        if message.name == "ClassifyRequest":
            one = _reference(_type_of(message, "images"), schemas)
            properties["image"] = {**one, "description": "the only image, instead of images"}
        schema: dict[str, Any] = {"type": "object", "properties": properties, **_required(message)}
        if message.name == "Image":
            schema = {"oneOf": [{"type": "string", "contentEncoding": "base64"}, schema]}
        elif message in COORDINATES:
            size = len(COORDINATES[message])
            numbers = {"type": "array", "items": {"type": "number"}}
            schema = {"anyOf": [schema, {**numbers, "minItems": size, "maxItems": size}]}
        elif message is AREA:
            schema = {"anyOf": [schema, _reference(_type_of(message, "box"), schemas)]}
        schemas[message.name] = schema
    return {"$ref": f"#/components/schemas/{message.name}"}


def _type_of(message: Descriptor, field: str) -> Descriptor:
    kind = message.fields_by_name[field].message_type
    assert kind is not None
    return kind


def _form(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form: the same fields, with images as files, nested ones as JSON."""
    properties = {}
    for field in message.fields:
        kind = field.message_type
        name = "image" if field.name == "images" else field.name
        if kind is not None and kind.name == "Image":
            properties[name] = {
                "type": "string",
                "contentMediaType": "application/octet-stream",
                "description": "a file, or the key of one sent earlier",
            }
        else:
            properties[name] = _described(field, schemas)
    return {"type": "object", "properties": properties, **_required(message)}


def _required(message: Descriptor) -> dict[str, list[str]]:
    """Return the ``required`` of a schema; a reply's fields are not marked."""
    marked = [
        field.name
        for field in message.fields
        if DESCRIPTIONS[f"{message.name}.{field.name}"].startswith(descriptions.REQUIRED)
    ]
    return {"required": marked} if marked else {}


def _described(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    message = field.containing_type
    assert message is not None
    text = DESCRIPTIONS[f"{message.name}.{field.name}"].removeprefix(descriptions.REQUIRED)
    return {**_field(field, schemas), "description": text}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if kind is not None:
        schema = _reference(kind, schemas)
    elif field.enum_type is not None:
        schema = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    elif field.full_name == "samclip.v1.CocoRle.counts":  # ASCII, as in COCO's JSON
        schema = SCALARS[FieldDescriptor.CPPTYPE_STRING]
    elif field.type == FieldDescriptor.TYPE_BYTES:
        schema = {"type": "string", "contentEncoding": "base64"}
    else:
        schema = SCALARS[field.cpp_type]
    return {"type": "array", "items": schema} if field.is_repeated else schema
