"""The OpenAPI document, generated from the routes, the messages and the comments of the proto."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import samclip
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.families import edge
from services.gateway.examples import EXAMPLES, SMALL
from services.request import overlay
from services.request.as_bytes import BYTES as RAW
from services.request.http import LINES
from services.request.messages import AREA, ASK, COORDINATES, IMAGE, STRUCT, TENSOR, descriptor
from services.request.routes import HEAD, ROUTES, Route, routes_of
from services.request.to_json import to_json

SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
}
PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string", "description": "about:blank: title and status say all"},
        "title": {"type": "string", "description": "the kind of error in a few words"},
        "status": {"type": "integer", "description": "the HTTP status"},
        "detail": {"type": "string", "description": "what happened, what was expected, what to do"},
        "request_id": {"type": "string", "description": "the name of this request in the logs"},
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}
KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
PAGES = {
    "/healthz": ("Live", "Liveness: the service responds."),
    "/readyz": ("Ready", "Readiness: the models are warm, and the state of each dependency."),
    "/models": ("ListModels", "The models that requests can name, and their state."),
    "/models/{name}/decoder.onnx": (
        "GetDecoder",
        "The mask decoder of a model as ONNX, with SAM's own inputs and outputs; its ETag is its "
        "digest.",
    ),
    "/heads": ("ListHeads", "The heads of one's own, with the schemas of their parameters."),
    "/metrics": ("Metrics", "Metrics samclip_* of all replicas, in Prometheus' text format."),
}
"""The operation id and summary of each page that programs read."""
BYTES = {"type": "string", "contentEncoding": "base64"}
FAILED = {
    "description": "An error",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
FILE = {"type": "string", "format": "binary"}  # as in OpenAPI 3.0: generators know no other yet
PICTURE = {**FILE, "description": "a file, or the key of one sent earlier"}
FORM, JSON = "multipart/form-data", "application/json"
AS_JSON, SEVERAL = {"contentType": JSON}, {"style": "form", "explode": True}
"""The encoding of parts of a form: an object, and several values."""
DESCRIPTIONS = json.loads(Path(__file__).with_name("descriptions.json").read_text())
"""The comments of samclip.proto by MESSAGE.FIELD, which ``make proto`` writes."""
REQUIRED = "Required. "
"""The beginning of a comment on a field that a request must have."""

ABOUT = f"""[Playground](/) · [OpenAPI document](/openapi.json), for generators of clients

A form takes an image as a file, JSON takes it as base64 or by its key. `docs/api.md` of
the source explains every answer; `make site` builds all documents.

**The weights.** {edge.LICENCE}"""


def example(route: Route) -> dict[str, Any]:
    """Return a request that the service answers: that of EXAMPLES, or the required fields alone."""
    if route.rpc in EXAMPLES:
        return EXAMPLES[route.rpc]
    message, body = descriptor(route.request), dict[str, Any]()
    for name in _required(message).get("required", ()):
        field = message.fields_by_name[name]
        value = SMALL["image"] if field.message_type else "a ball"
        body[name] = [value] if field.is_repeated else value
    return body


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all services."""
    schemas: dict[str, Any] = {"Problem": PROBLEM}
    paths: dict[str, Any] = {}
    for application in sorted(ROUTES, key=lambda name: name == "backbone"):  # the heads first
        for route in ROUTES[application]:
            paths[route.path] = {"post": _operation(application, route, schemas)}
    paths |= {path: _get(path, schemas) for path in PAGES}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SAM-CLIP Serve",
            "version": samclip.__version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": KEYS},
        "security": [{}, *({name: []} for name in KEYS)],  # {}: keys are optional
    }


def _get(path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    (name, summary), ok = PAGES[path], dict[str, Any](description="OK")
    others: dict[str, Any] = {"503": {"description": "Unavailable"}}
    if name == "GetDecoder":
        ok["content"] = {RAW: {"schema": FILE}}
        others = {"304": {"description": "The caller has it"}, "default": FAILED}
    elif name in RPCS:
        ok["content"] = {JSON: {"schema": _reference(RPCS[name].output_type, schemas)}}
    about: dict[str, Any] = {"tags": ["service"], "operationId": name, "summary": summary}
    if "{name}" in path:
        text = {"type": "string", "description": "the model, as in ListModels"}
        about["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": text}]
    return {"get": {**about, "responses": {"200": ok, **others}}}


def with_heads(found: Mapping[str, Any], heads: Iterable[pb.ListedHead]) -> dict[str, Any]:
    """Return a document with the routes of heads of one's own that answer."""
    paths, schemas = dict(found["paths"]), dict(found["components"]["schemas"])
    for head in heads:
        if not head.reason:
            (route,) = routes_of(HEAD + head.name)
            paths[route.path] = {"post": _ask(head, route, schemas)}
    return {**found, "paths": paths, "components": {**found["components"], "schemas": schemas}}


def _ask(head: pb.ListedHead, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the operation of a head, whose own schemas come beside the others."""
    text = json.dumps(to_json(head).get("parameters", {}))
    own = json.loads(text.replace('"#/$defs/', f'"#/components/schemas/{head.name}.'))
    schemas |= {f"{head.name}.{name}": each for name, each in own.pop("$defs", {}).items()}
    known = own.pop("properties", {})
    parameters = {  # Swagger's form would send the text "null"
        name: {key: each for key, each in known[name].items() if (key, each) != ("default", None)}
        for name in own.pop("x-order", known)
    }
    more = {name: _described(ASK.fields_by_name[name], schemas) for name in ("encoding", "model")}

    def body(image: dict[str, Any]) -> dict[str, Any]:
        properties = {"image": image, **parameters, **more}
        return {**own, "properties": properties, "required": ["image", *own.get("required", ())]}

    as_json = {"schema": body(_described(ASK.fields_by_name["image"], schemas))}
    if "required" not in own:
        usual = {n: each["default"] for n, each in parameters.items() if "default" in each}
        as_json["example"] = SMALL | usual
    parts = {name: _part(each) for name, each in parameters.items()}
    form = {"schema": body(PICTURE), "encoding": {n: part for n, part in parts.items() if part}}
    summary = head.description.partition("\n")[0] or route.summary
    reply = {"application/json": {"schema": _reply(route, schemas)}}
    name = f"Ask{head.name.title().replace('-', '')}"
    return _post("heads", name, summary, {FORM: form, JSON: as_json}, reply)


def _part(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a form has a parameter: plain values as a part each, a list of objects as JSON."""
    lists = [one for one in (schema, *schema.get("anyOf", ())) if one.get("type") == "array"]
    plain = ("string", "integer", "number", "boolean")
    several = all(one.get("items", {}).get("type") in plain for one in lists)
    return {} if not lists else SEVERAL if several else AS_JSON


def _operation(application: str, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    message = descriptor(route.request)
    content: dict[str, Any] = {JSON: {"schema": _reply(route, schemas)}}
    if route.rpc in overlay.DRAWN:
        content["image/png"] = {"schema": FILE}
    if route.rpc == "Embed":
        content[RAW] = {"schema": FILE}
    if route.stream:
        content[LINES] = {"schema": _reference(RPCS[route.stream].output_type, schemas)}
    bodies = {
        FORM: _form(route, schemas),
        JSON: {"schema": _reference(message, schemas), "example": example(route)},
    }
    if IMAGE not in (field.message_type for field in message.fields):
        bodies = dict(reversed(bodies.items()))  # a form is for files
    return _post(application, route.rpc, route.summary, bodies, content)


def _post(
    tag: str, name: str, summary: str, bodies: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "The response", "content": content},
            "default": FAILED,
        },
    }


def _reply(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a reply, which for the class of one image has its scores as results."""
    whole = _reference(descriptor(route.response), schemas)
    if route.rpc != "Classify":
        return whole
    result = descriptor(pb.ClassifyResult).fields_by_name
    fields = {"image": result["image"], "results": result["scores"]}
    fields["model"] = descriptor(route.response).fields_by_name["model"]
    properties = {name: _described(field, schemas) for name, field in fields.items()}
    schemas["ClassifyImageResponse"] = {
        "type": "object",
        "description": "The response to a single image, without areas",
        "properties": properties,
        "required": [*properties],
    }
    return {"anyOf": [{"$ref": "#/components/schemas/ClassifyImageResponse"}, whole]}


def _reference(kind: Descriptor | EnumDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the schema of a message or an enum, which is added if it is new."""
    if kind.name not in schemas:
        schemas[kind.name] = {}  # placeholder that ends recursion
        if isinstance(kind, EnumDescriptor):
            names = [value.name for value in kind.values]
            schemas[kind.name] = {"type": "string", "enum": names}
        else:
            schemas[kind.name] = _object(kind, schemas)
    return {"$ref": f"#/components/schemas/{kind.name}"}


def _object(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    properties = {field.name: _described(field, schemas) for field in message.fields}
    if message.name == "ClassifyRequest":
        only = {"description": "the only image, instead of images"}
        properties["image"] = _taken(IMAGE, schemas) | only
    return {"type": "object", "properties": properties, **_required(message)}


def _taken(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a message in a request, where some have short forms."""
    schema = _reference(message, schemas)
    if message is IMAGE:
        return {"oneOf": [BYTES, schema]}
    if message is AREA:
        return {"anyOf": [schema, *_taken(descriptor(pb.Box), schemas)["anyOf"]]}
    if message in COORDINATES:
        size = len(COORDINATES[message])
        numbers = {"type": "array", "items": {"type": "number"}}
        return {"anyOf": [schema, {**numbers, "minItems": size, "maxItems": size}]}
    return schema


def _form(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the media type of a form: the same fields, with images as files, nested ones as JSON.

    Several texts or numbers are a part each, which clients would otherwise join with commas.
    """
    message, properties, encoding = descriptor(route.request), dict[str, Any](), dict[str, Any]()
    for field in sorted(message.fields, key=lambda field: field.message_type is not IMAGE):
        if field.message_type is IMAGE:
            properties["image"] = PICTURE
            continue
        properties[field.name] = _described(field, schemas)
        if field.name in example(route) and AREA is not field.message_type:  # of the small image
            properties[field.name]["example"] = example(route)[field.name]
        if field.message_type is not None:
            encoding[field.name] = AS_JSON
        elif field.is_repeated:
            encoding[field.name] = SEVERAL
    schema = {"type": "object", "properties": properties, **_required(message)}
    return {"schema": schema, "encoding": encoding}


def _required(message: Descriptor) -> dict[str, list[str]]:
    """Return the ``required`` of a schema; a reply has all fields that cannot be unset."""
    marked = [
        field.name
        for field in message.fields
        if DESCRIPTIONS[f"{message.name}.{field.name}"].startswith(REQUIRED)
        or (message in REPLIES and not field.has_presence and message is not TENSOR)
    ]
    return {"required": marked} if marked else {}


def _described(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    message = field.containing_type
    assert message is not None
    text = DESCRIPTIONS[f"{message.name}.{field.name}"].removeprefix(REQUIRED)
    return {**_field(field, schemas), "description": text}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if kind is STRUCT:
        return {"type": "object"}
    if kind is not None:
        as_reply = field.containing_type in REPLIES
        schema = _reference(kind, schemas) if as_reply else _taken(kind, schemas)
    elif field.enum_type is not None:
        schema = _reference(field.enum_type, schemas)
    elif field.full_name == "samclip.v1.CocoRle.counts":  # ASCII, as in COCO's JSON
        schema = SCALARS[FieldDescriptor.CPPTYPE_STRING]
    elif field.type == FieldDescriptor.TYPE_BYTES:
        schema = BYTES
    else:
        schema = SCALARS[field.cpp_type]
    return {"type": "array", "items": schema} if field.is_repeated else schema


def _all_in(messages: Iterable[Descriptor]) -> set[Descriptor]:
    """Return messages and those in them, at any depth."""
    seen, waiting = set[Descriptor](), [*messages]
    while waiting:
        message = waiting.pop()
        if message not in seen:
            seen.add(message)
            waiting += [field.message_type for field in message.fields if field.message_type]
    return seen


REPLIES = _all_in(method.output_type for method in RPCS.values())
