"""Each request is counted, timed and logged once, without what it holds."""

import asyncio
import logging

import pytest

from samclip_core.errors import Overloaded
from services.observability import logs, metrics
from services.request import request_log
from tests.shown import shown

IDENTITY = {request_log.REQUEST_ID: "r-1"}


def counted(rpc: str, code: str) -> float:
    return shown(metrics.REQUESTS.labels("Service", rpc, code))


def test_an_answer_is_counted_under_the_rpc_that_it_turned_out_to_be():
    before = counted("Known", "OK")
    with request_log.record("Service", "Guessed", IDENTITY) as seen:
        assert shown(metrics.INFLIGHT.labels("Service")) == 1
        assert logs.request_id.get() == "r-1"
        seen.rpc = "Known"
    assert shown(metrics.INFLIGHT.labels("Service")) == 0
    assert (counted("Known", "OK"), counted("Guessed", "OK")) == (before + 1, 0)


def test_time_is_from_when_the_request_had_come_in():
    total = metrics.REQUEST_SECONDS.labels("Service", "Late")
    with request_log.record("Service", "Late", IDENTITY) as seen:
        seen.since -= 1000
    assert 1000 <= shown(total) < 2000


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Overloaded("full"), "RESOURCE_EXHAUSTED"),
        (ZeroDivisionError("a bug"), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
    ],
)
def test_errors_are_counted_and_only_ours_are_logged_as_errors(error, code, caplog):
    before = counted("Fails", code)
    with pytest.raises(type(error)), request_log.record("Service", "Fails", IDENTITY):
        raise error
    assert counted("Fails", code) == before + 1
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == (code == "INTERNAL")


def test_one_line_a_request_and_nothing_that_it_held(caplog):
    caplog.set_level(logging.INFO, "services.request.request_log")
    with pytest.raises(Overloaded), request_log.record("Service", "Fails", IDENTITY):
        raise Overloaded("the label 'a secret'")
    (record,) = caplog.records
    assert record.fields.keys() == {"service", "rpc", "code", "seconds"}
    assert record.fields["code"] == "RESOURCE_EXHAUSTED"
    assert "secret" not in str(vars(record))
