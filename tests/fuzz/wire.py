"""Any request over gRPC and HTTP to a running service: what it must never do.

It never says INTERNAL or 5xx, never keeps silent, and never tells of its files or its code.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

import grpc
import schemathesis
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from samclip.v1 import samclip_pb2 as pb
from schemathesis.specs.openapi import checks

from tests.checkout import ROOT
from tests.e2e.conftest import Service
from tests.fuzz.strategies import messages

HANG_S = 60
EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
}
LEAK = re.compile(
    "|".join(
        (re.escape(str(ROOT)), "site-packages", "Traceback", r"\.py\b", r"line \d+, in ", "ray::")
    )
)
"""Of what callers may send, nothing looks like this."""
CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""The document says which types a request has, not which values make sense: 400 is no breach."""
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@dataclass
class Tally:
    """How many requests were sent, by rpc or route, and their outcomes."""

    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, outcome: str) -> None:
        self.sent[where] += 1
        self.outcomes[outcome] += 1


def fuzz_grpc(channel: grpc.Channel, examples: int, number: int, tally: Tally) -> None:
    """Messages of every rpc, as many of each, and bytes that are none."""
    each = -(-examples // len(METHODS))
    for path, method in METHODS:
        requests = messages(GetMessageClass(method.input_type)) | st.binary(max_size=100)
        _fuzz_rpc(channel, path, requests, settings(max_examples=each), number, tally)


def _fuzz_rpc(
    channel: grpc.Channel,
    path: str,
    requests: st.SearchStrategy[Message | bytes],
    most: settings,
    number: int,
    tally: Tally,
) -> None:
    call = channel.unary_unary(path)

    @seed(number)
    @settings(most, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(requests)
    def check(request: Message | bytes) -> None:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            code, told = "OK", call(data, timeout=HANG_S)
        except grpc.RpcError as error:
            code, told = error.code().name, (error.details() or "").encode()
        tally.add(path, code)
        assert code in EXPECTED, (path, code, told[:500])
        assert not LEAK.search(told.decode("latin-1")), (path, told[:500])

    check()


def fuzz_http(service: Service, examples: int, number: int, tally: Tally) -> None:
    """What the OpenAPI document allows and what it does not, and replies that are as it says."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    @given(st.one_of(operation.as_strategy() for operation in operations))
    def check(case: schemathesis.Case) -> None:
        reply = case.call(base_url=service.url, timeout=HANG_S)
        tally.add(case.path, str(reply.status_code))
        assert reply.status_code < 500, (case.path, case.body, reply.text)
        case.validate_response(reply, checks=CONFORMANCE)
        if case.path != "/metrics":
            assert not LEAK.search(reply.text), reply.text

    check()
