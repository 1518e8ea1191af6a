"""What the API documents offer to try is answered with 200, in the order of the documents.

`make browser` tries the same as forms.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis

from services.gateway import openapi
from tests.e2e.conftest import Service
from tests.fuzz.wire import CONFORMANCE

pytestmark = pytest.mark.e2e

PATHS: dict[str, dict[str, Any]] = openapi.document()["paths"]


def _examples() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (path, body, accepted type) of each example and each kind of answer."""
    for path, item in PATHS.items():
        if "post" in item:
            body = item["post"]["requestBody"]["content"]["application/json"]
            named = body.get("examples") or {"": {"value": body["example"]}}
            for example in named.values():
                for kind in item["post"]["responses"]["200"]["content"]:
                    yield path, example["value"], kind


EXAMPLES = list(_examples())
"""In order: Index makes the collection that Search, Delete and ListItems ask for."""


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=300) as opened:
        yield opened
        opened.post("/delete", json={"collection": "example", "all": True})


def test_the_service_has_the_routes_of_this_document(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json()["paths"].keys() == PATHS.keys()
    assert {path for path, _, _ in EXAMPLES} == {p for p, item in PATHS.items() if "post" in item}


@pytest.mark.parametrize(("path", "body", "kind"), EXAMPLES)
def test_an_example_is_answered_as_the_document_says(
    path: str, body: dict[str, Any], kind: str, service: Service
) -> None:
    operation = schemathesis.openapi.from_dict(openapi.document())[path]["POST"]
    case = operation.Case(body=body, media_type="application/json", headers={"accept": kind})
    answer = case.call(base_url=service.url, timeout=300)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == [kind]
    case.validate_response(answer, checks=CONFORMANCE)
