"""A request's context: read from its headers once, and passed on to the next service."""

import pytest

from samclip_core.errors import InvalidRequest
from services.request.callers import KEY, SCOPES, TENANT
from services.request.context import CHECKPOINT, GRAPHS, IMAGE_KEY, RequestContext
from services.request.priority import PRIORITY, TIMEOUT
from services.request.request_log import REQUEST_ID
from services.settings import Settings

CALLER = {KEY: "ann", TENANT: "acme", SCOPES: "read,index"}
HEADERS = {
    REQUEST_ID: "r-1",
    PRIORITY: "bulk",
    TIMEOUT: "5S",
    CHECKPOINT: "abc",
    GRAPHS: "def",
    IMAGE_KEY: "f00",
}


def read(headers: dict[str, str]) -> RequestContext:
    return RequestContext.read(headers, Settings(), most_s=60)


def test_it_has_what_the_headers_say():
    context = read(CALLER | HEADERS)
    assert (context.id, context.caller.tenant) == ("r-1", "acme")
    assert context.priority.bulk
    assert 0 < context.priority.time_left() <= 5
    assert (context.checkpoint, context.image_key) == ("abc", "f00")


def test_without_headers_nothing_is_asked_for():
    context = read({})
    assert (context.id, context.checkpoint, context.image_key) == ("", "", "")
    assert not context.priority.bulk
    assert 0 < context.priority.time_left() <= 60
    assert context.caller.scopes is None


def test_headers_that_mean_nothing_are_refused():
    with pytest.raises(InvalidRequest, match=PRIORITY):
        read({PRIORITY: "soon"})


def test_the_next_service_learns_who_asks_and_how_urgent_it_is():
    passed = dict(read(CALLER | HEADERS).headers())
    assert (passed[REQUEST_ID], passed[PRIORITY], passed[TENANT]) == ("r-1", "bulk", "acme")
    assert passed[SCOPES] == "read"  # one service asks another only questions
    assert TIMEOUT in passed
    assert CHECKPOINT not in passed
    assert IMAGE_KEY not in passed


def test_bulk_work_keeps_the_deadline():
    context = read(CALLER | {TIMEOUT: "5S"})
    bulk = context.in_bulk()
    assert bulk.priority.bulk
    assert not context.priority.bulk
    assert bulk.priority.deadline == context.priority.deadline
    assert bulk.caller == context.caller
