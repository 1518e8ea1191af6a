"""The OpenAPI document describes every route, and its schemas are what bodies take."""

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from services.gateway import openapi
from services.request import messages
from services.request.http import LINES
from services.request.routes import CUSTOM, ROUTES, SERVICES
from services.request.to_json import to_json


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_rpc_has_a_route_and_every_route_is_described() -> None:
    services = {rpc: method.containing_service.full_name for rpc, method in RPCS.items()}
    rpcs = {(SERVICES[name], rpc) for rpc, name in services.items() if name != CUSTOM}
    routes = [(name, route) for name, routes in ROUTES.items() for route in routes]
    whole = {(name, route.rpc) for name, route in routes}
    whole |= {(name, route.stream) for name, route in routes if route.stream}
    of_gateway = {"/models": "ListModels", "/models/{name}/decoder.onnx": "GetDecoder"}
    assert rpcs == whole | {("backbone", rpc) for rpc in of_gateway.values()}
    document = openapi.document()["paths"]
    for path, rpc in of_gateway.items():
        assert document[path]["get"]["operationId"] == rpc
    posts = {path: item["post"] for path, item in document.items() if "post" in item}
    assert set(posts) == {route.path for _, route in routes}
    for _, route in routes:
        assert (LINES in posts[route.path]["responses"]["200"]["content"]) is bool(route.stream)


def test_nothing_is_referred_to_that_is_not_there() -> None:
    document = openapi.document()
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas
    assert {} not in document["components"]["schemas"].values()


def test_fields_have_the_types_that_bodies_take() -> None:
    schemas = openapi.document()["components"]["schemas"]
    mask = schemas["Mask"]["properties"]
    assert (mask["area"]["type"], mask["area"]["format"]) == ("integer", "int64")
    assert (mask["png"]["type"], mask["png"]["contentEncoding"]) == ("string", "base64")
    counts = schemas["CocoRle"]["properties"]["counts"]
    assert counts["type"] == "string"
    assert "contentEncoding" not in counts
    assert schemas["Prompt"]["properties"]["box"]["anyOf"][1]["minItems"] == 4
    request = schemas["SegmentRequest"]["properties"]
    assert request["image"]["oneOf"][0] == {"type": "string", "contentEncoding": "base64"}
    assert request["encoding"]["$ref"].endswith("/MaskEncoding")
    assert schemas["MaskEncoding"]["enum"] == list(pb.MaskEncoding.keys())
    assert request["prompts"]["items"] == {"$ref": "#/components/schemas/Prompt"}
    assert schemas["IndexItem"]["properties"]["metadata"]["type"] == "object"
    assert "image" in schemas["ClassifyRequest"]["properties"]


def test_fields_are_described_and_the_necessary_ones_required() -> None:
    schemas = openapi.document()["components"]["schemas"]
    for name, schema in schemas.items():
        for variant in (schema, *schema.get("oneOf", ()), *schema.get("anyOf", ())):
            for field, described in variant.get("properties", {}).items():
                assert name == "Problem" or described["description"], f"{name}.{field}"
    assert schemas["SegmentRequest"]["required"] == ["image", "prompts"]
    assert schemas["ClassifyRequest"]["required"] == ["labels"]


@pytest.mark.parametrize(
    "message",
    sorted(openapi.REPLIES - {messages.TENSOR}, key=lambda message: message.name),
    ids=lambda message: str(message.name),
)
def test_a_reply_has_what_its_schema_requires_and_no_short_forms(message: Descriptor) -> None:
    schema = openapi.document()["components"]["schemas"].get(message.name)
    if schema is None:  # an entry of a map
        return
    reply = to_json(GetMessageClass(message)())
    assert set(schema.get("required", ())) == set(reply)
    assert not [name for name, field in schema["properties"].items() if "anyOf" in field]


def test_one_operation_has_one_name() -> None:
    operations = [one for item in openapi.document()["paths"].values() for one in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_a_form_with_an_image_comes_first_and_begins_with_its_file() -> None:
    for routes in ROUTES.values():
        for route in routes:
            content = openapi.document()["paths"][route.path]["post"]["requestBody"]["content"]
            properties = content["multipart/form-data"]["schema"]["properties"]
            assert (next(iter(content)) == "multipart/form-data") is ("image" in properties)
            if "image" in properties:
                assert next(iter(properties)) == "image"
                assert properties["image"]["format"] == "binary"


def test_examples_are_requests() -> None:
    for route in (route for routes in ROUTES.values() for route in routes):
        example = openapi.example(route)
        assert messages.to_message(route.request, example, form=False)


def test_a_key_may_be_needed_and_is_sent_in_one_of_two_ways() -> None:
    found = openapi.document()
    schemes = found["components"]["securitySchemes"]
    assert schemes["key"] == {"type": "apiKey", "in": "header", "name": "x-api-key"}
    assert found["security"] == [{}, {"key": []}, {"bearer": []}]
