"""Arbitrary gRPC and HTTP requests to a running service.

The service must never reply INTERNAL or 5xx, never hang, and never reveal its files or code.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import schemathesis
from google.protobuf.descriptor import MethodDescriptor
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
"""Traces of the server's files and code; no input of the fuzzers contains them."""
CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""The OpenAPI document states types, not all constraints on values, so 400 is allowed."""
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@dataclass
class Tally:
    """Counts of requests by rpc or route, and of their outcomes."""

    sent: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, outcome: str) -> None:
        self.sent[where] += 1
        self.outcomes[outcome] += 1


def fuzz_grpc(channel: grpc.Channel, examples: int, number: int, tally: Tally) -> None:
    """Send messages of every rpc in equal numbers, and arbitrary bytes."""
    each = -(-examples // len(METHODS))
    for path, method in METHODS:
        requests = messages(GetMessageClass(method.input_type)) | st.binary(max_size=100)
        _fuzz_rpc(_call(channel, path, method), path, requests, each, number, tally)


def _call(channel: grpc.Channel, path: str, method: MethodDescriptor) -> Callable[[bytes], bytes]:
    """Return a function that sends one message, and returns all replies of the rpc in one."""
    if method.server_streaming:
        stream = channel.unary_stream(path)
        return lambda data: b"".join(stream(data, timeout=HANG_S))
    return lambda data: channel.unary_unary(path)(data, timeout=HANG_S)


def _fuzz_rpc(
    call: Callable[[bytes], bytes],
    path: str,
    requests: st.SearchStrategy[Message | bytes],
    examples: int,
    number: int,
    tally: Tally,
) -> None:
    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    @given(requests)
    def check(request: Message | bytes) -> None:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            code, reply = "OK", call(data)
        except grpc.RpcError as error:
            code, reply = error.code().name, (error.details() or "").encode()
        tally.add(path, code)
        assert code in EXPECTED, (path, code, reply[:500])
        assert not LEAK.search(reply.decode("latin-1")), (path, reply[:500])

    check()


def fuzz_http(service: Service, examples: int, number: int, tally: Tally) -> None:
    """Send requests derived from the OpenAPI document, valid or not, and check the replies."""
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
