"""A short run of the requests of ``make fuzz``."""

import grpc
import pytest

from tests.e2e.conftest import Service
from tests.fuzz.wire import METHODS, Tally, fuzz_grpc, fuzz_http

pytestmark = pytest.mark.e2e


def test_any_message_over_grpc(channel: grpc.Channel) -> None:
    tally = Tally()
    fuzz_grpc(channel, examples=150, number=0, tally=tally)
    assert len(tally.sent) == len(METHODS)


def test_anything_over_http(service: Service) -> None:
    tally = Tally()
    fuzz_http(service, examples=60, number=0, tally=tally)
    assert len(tally.sent) > 8
