"""A request's context: read from its headers once, and passed on to the next service."""

import json
import logging
import math
import re
from pathlib import Path

import pytest

from samclip_core.errors import InvalidRequest, PermissionDenied, Unauthenticated
from services.batching import priority as module
from services.batching.priority import PRIORITY, TIMEOUT, Priority
from services.request.context import (
    CHECKPOINT,
    GRAPHS,
    IMAGE_KEY,
    KEY,
    SCOPES,
    TENANT,
    Caller,
    RequestContext,
    audit_log,
)
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
IMAGE = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(module, "monotonic", lambda: 1000.0)
    return 1000.0


def read(headers: dict[str, str]) -> RequestContext:
    return RequestContext.read(headers, Settings(request_timeout_s=60))


def test_it_has_what_the_headers_say():
    context = read(CALLER | HEADERS)
    assert (context.id, context.caller.tenant) == ("r-1", "acme")
    assert (context.checkpoint, context.graphs, context.image_key) == ("abc", "def", "f00")
    assert (context.priority.time_left(), context.priority.bulk) == (5, True)
    empty = read({})
    assert empty == RequestContext(priority=empty.priority)
    assert (empty.priority.time_left(), empty.priority.bulk) == (60, False)
    bulk = empty.in_bulk()
    assert bulk == RequestContext(priority=bulk.priority)
    assert (bulk.priority.time_left(), bulk.priority.bulk) == (60, True)


def test_the_next_service_learns_who_asks_and_how_urgent_it_is():
    passed = dict(read(CALLER | HEADERS).headers())
    assert (passed[REQUEST_ID], passed[PRIORITY], passed[TENANT]) == ("r-1", "bulk", "acme")
    assert passed[SCOPES] == "read"  # one service asks another only questions
    assert TIMEOUT in passed
    assert CHECKPOINT not in passed
    assert IMAGE_KEY not in passed


def test_without_keys_everybody_is_the_same_and_may_do_everything() -> None:
    caller = Caller.read({}, keys_asked_for=False)
    caller.check("admin")
    assert caller.tenant == ""
    assert caller.headers() == ()
    common = Caller.read({**CALLER, TENANT: "-"}, keys_asked_for=True)
    assert caller.cache_key(IMAGE) == common.cache_key(IMAGE) == IMAGE


def test_where_keys_are_configured_a_caller_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="no valid API key"):
        RequestContext.read({}, Settings(api_keys_file=tmp_path / "keys"))


def test_a_key_has_its_scopes_and_no_others() -> None:
    caller = Caller.read(CALLER, keys_asked_for=True)
    caller.check("read")
    caller.check("index")
    with pytest.raises(PermissionDenied, match="'ann' has no scope 'admin'"):
        caller.check("admin")


def test_the_next_service_is_told_whom_it_works_for_and_may_be_asked() -> None:
    for headers in (CALLER, {**CALLER, TENANT: "-"}, {**CALLER, SCOPES: "index"}):
        caller = Caller.read(headers, keys_asked_for=True)
        forwarded = Caller.read(dict(caller.headers()), keys_asked_for=True)
        assert (forwarded.name, forwarded.tenant) == (caller.name, caller.tenant)
        assert forwarded.scopes == {"read"}


def test_no_tenant_finds_what_another_has_sent_whatever_key_it_makes_up() -> None:
    tenants = [Caller.read({**CALLER, TENANT: name}, True) for name in ("acme", "other", "-")]
    names = {caller.cache_key(IMAGE) for caller in tenants}
    assert len(names) == 3
    assert all(re.fullmatch("[0-9a-f]{64}|[0-9A-F]{64}", name) for name in names)
    # Even a caller that knows the name of an entry cannot use it as a key.
    held = names - {IMAGE}
    made_up = {change(name) for name in held for change in (str, str.lower, str.upper)}
    assert not held & {caller.cache_key(name) for caller in tenants for name in made_up}


@pytest.mark.parametrize("tenant", ["-", "acme"])
def test_a_tenant_finds_an_image_with_another_key_and_by_a_name_in_upper_case(tenant: str) -> None:
    caller = Caller.read({**CALLER, TENANT: tenant}, keys_asked_for=True)
    another_key = Caller.read({**CALLER, TENANT: tenant, KEY: "ann-2"}, keys_asked_for=True)
    assert another_key.cache_key(IMAGE.upper()) == caller.cache_key(IMAGE)


def test_the_audit_log_is_json_and_shown_whatever_else_is() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    audit_log.addHandler(handler)
    try:
        Caller.read(CALLER, True).audit("Index", "r-1", "OK", collection="pe\nts")
        Caller.read({}, False).audit("Index", "r-2", "OK")  # anonymous, so not logged
    finally:
        audit_log.removeHandler(handler)
    assert len(records) == 1
    assert json.loads(records[0].getMessage()) == {
        "audit": "Index",
        "key": "ann",
        "tenant": "acme",
        "collection": "pe\nts",
        "code": "OK",
        "id": "r-1",
    }
    assert "\n" not in records[0].getMessage()
    assert audit_log.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [("30S", 30), ("250m", 0.25), ("1M", 60), ("500000u", 0.5), ("7000n", 7e-6), ("0m", 0)],
)
def test_a_deadline_is_read_as_grpc_writes_it(now, timeout, seconds):
    assert Priority.read({TIMEOUT: timeout}, 99).deadline == pytest.approx(now + seconds)


@pytest.mark.parametrize("headers", [{}, {TIMEOUT: ""}, {TIMEOUT: "2H"}, {TIMEOUT: "99999999H"}])
def test_no_deadline_is_later_than_the_services_own(now, headers):
    assert Priority.read(headers, 60).deadline == now + 60


@pytest.mark.parametrize("timeout", ["soon", "5", "5s", "-5S", "1.5S", "123456789S", "５S", "5S\n"])
def test_what_is_no_timeout_or_priority_is_refused(timeout):
    with pytest.raises(InvalidRequest, match="expected a whole number and a unit"):
        Priority.read({TIMEOUT: timeout}, 60)
    with pytest.raises(InvalidRequest, match="'urgent', expected interactive or bulk"):
        Priority.read({PRIORITY: "urgent"}, 60)


@pytest.mark.parametrize(
    ("headers", "by_default", "bulk"),
    [
        ({}, False, False),
        ({}, True, True),
        ({PRIORITY: "bulk"}, False, True),
        ({PRIORITY: "interactive"}, True, False),
    ],
)
def test_the_caller_may_say_what_is_bulk(headers, by_default, bulk):
    assert Priority.read(headers, 60, by_default).bulk is bulk


def test_shared_work_is_as_urgent_as_its_most_urgent_caller():
    shared = Priority.of_nobody()
    shared.join(Priority(deadline=1005.0, bulk=True))
    assert (shared.deadline, shared.bulk) == (1005.0, True)
    shared.join(Priority(deadline=1002.0))
    assert (shared.deadline, shared.bulk) == (1005.0, False)
    shared.join(Priority(bulk=True))
    assert (shared.deadline, shared.bulk) == (math.inf, False)


def test_it_arrives_at_the_next_service_as_it_was():
    sent = Priority(deadline=1002.5, bulk=True)
    arrived = Priority.read(dict(sent.headers()), 60)
    assert (arrived.deadline, arrived.bulk) == (1002.5, True)
    assert Priority(deadline=990.0).time_left() == 0
    assert Priority(deadline=990.0).headers() == ((PRIORITY, "interactive"), (TIMEOUT, "0m"))
    assert Priority().headers() == ((PRIORITY, "interactive"),)
