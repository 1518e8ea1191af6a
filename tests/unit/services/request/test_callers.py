import json
import logging
import re

import pytest

from samclip_core.errors import PermissionDenied, Unauthenticated
from services.request.callers import KEY, SCOPES, TENANT, Caller, audit_log

ANN = {KEY: "ann", TENANT: "acme", SCOPES: "read,index"}
IMAGE = "0123456789abcdef" * 4


def test_without_keys_everybody_is_the_same_and_may_do_everything() -> None:
    caller = Caller.read({}, keys_asked_for=False)
    caller.check("admin")
    assert caller.tenant == ""
    assert caller.headers() == ()
    assert caller.cache_key(IMAGE) == IMAGE


def test_where_keys_are_asked_for_silence_is_no_permission() -> None:
    with pytest.raises(Unauthenticated):
        Caller.read({}, keys_asked_for=True)


def test_a_key_has_its_scopes_and_no_others() -> None:
    caller = Caller.read(ANN, keys_asked_for=True)
    caller.check("read")
    caller.check("index")
    with pytest.raises(PermissionDenied, match="'ann' has no scope 'admin'"):
        caller.check("admin")


def test_the_next_service_is_told_whom_it_works_for_and_may_be_asked() -> None:
    for headers in (ANN, {**ANN, TENANT: "-"}, {**ANN, SCOPES: "index"}):
        caller = Caller.read(headers, keys_asked_for=True)
        forwarded = Caller.read(dict(caller.headers()), keys_asked_for=True)
        assert (forwarded.name, forwarded.tenant) == (caller.name, caller.tenant)
        assert forwarded.scopes == {"read"}


def test_no_tenant_finds_what_another_has_sent_whatever_key_it_makes_up() -> None:
    tenants = [Caller.read({**ANN, TENANT: name}, True) for name in ("acme", "other", "-")]
    names = {caller.cache_key(IMAGE) for caller in tenants}
    assert len(names) == 3
    assert all(re.fullmatch("[0-9a-f]{64}|[0-9A-F]{64}", name) for name in names)
    # Even a caller that knows the name of an entry cannot use it as a key.
    held = names - {IMAGE}
    made_up = {change(name) for name in held for change in (str, str.lower, str.upper)}
    assert not held & {caller.cache_key(name) for caller in tenants for name in made_up}


def test_what_came_without_keys_belongs_to_the_common_tenant() -> None:
    without = Caller.read({}, keys_asked_for=False)
    common = Caller.read({**ANN, TENANT: "-"}, keys_asked_for=True)
    assert common.cache_key(IMAGE) == without.cache_key(IMAGE) == IMAGE


@pytest.mark.parametrize("tenant", ["-", "acme"])
def test_image_keys_may_be_in_upper_case(tenant: str) -> None:
    caller = Caller.read({**ANN, TENANT: tenant}, keys_asked_for=True)
    assert caller.cache_key(IMAGE.upper()) == caller.cache_key(IMAGE)


def test_the_same_tenant_finds_it_with_another_key() -> None:
    one, other = (Caller.read({**ANN, KEY: name}, True) for name in ("ann", "ann-2"))
    assert one.cache_key(IMAGE) == other.cache_key(IMAGE)


def test_the_audit_log_is_json_and_shown_whatever_else_is() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    audit_log.addHandler(handler)
    try:
        Caller.read(ANN, True).audit("Index", "r-1", "OK", collection="pe\nts")
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
