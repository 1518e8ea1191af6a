"""A minimal OTLP collector."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.http_server import Handler, serving


@dataclass
class Collector:
    """What it has received: ``spans`` are (trace, name, service)."""

    url: str = ""
    spans: list[tuple[str, str, str]] = field(default_factory=list)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [
                    (span.trace_id.hex(), span.name, named["service.name"]) for span in scope.spans
                ]


@contextmanager
def running() -> Iterator[Collector]:
    collector = Collector()

    class Receiver(Handler):
        def do_POST(self) -> None:
            collector.take(ExportTraceServiceRequest.FromString(self.body()))
            self.answer()

    with serving(Receiver) as collector.url:
        yield collector
