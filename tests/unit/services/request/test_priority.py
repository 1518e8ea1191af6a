import math

import pytest

from samclip_core.errors import InvalidRequest
from services.request import priority
from services.request.priority import PRIORITY, TIMEOUT, Priority


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(priority, "monotonic", lambda: 1000.0)
    return 1000.0


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
def test_what_is_no_timeout_is_refused(timeout):
    with pytest.raises(InvalidRequest, match="expected a whole number and a unit"):
        Priority.read({TIMEOUT: timeout}, 60)


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


def test_an_unknown_priority_is_refused():
    with pytest.raises(InvalidRequest, match="'urgent', expected interactive or bulk"):
        Priority.read({PRIORITY: "urgent"}, 60)


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
    assert Priority(deadline=990.0).headers() == ((PRIORITY, "interactive"), (TIMEOUT, "0m"))
    assert Priority().headers() == ((PRIORITY, "interactive"),)


def test_time_left_is_never_negative():
    assert Priority(deadline=1004.0).time_left() == 4
    assert Priority(deadline=990.0).time_left() == 0
    assert Priority().time_left() is None
