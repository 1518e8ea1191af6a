"""OpenTelemetry spans, sent to the collector that ``otlp_endpoint`` names; without it, no spans.

A request is a span in its caller's trace (W3C ``traceparent``, as header or gRPC metadata); its
stages and its calls to Redis and the backbone are spans within it. Work for several requests is
one span in the trace of the first, linked with the others. The caller decides whether its trace is
sampled; of all other requests one in a hundred is, unless ``OTEL_*`` variables say otherwise.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CLIENT, INTERNAL, SERVER = SpanKind.CLIENT, SpanKind.INTERNAL, SpanKind.SERVER
ERROR = StatusCode.ERROR

_W3C = TraceContextTextMapPropagator()
_NOTHING = nullcontext(INVALID_SPAN)
_tracer: Tracer | None = None


def start(service: str, endpoint: str) -> None:
    """Send spans to an OTLP collector, such as ``http://127.0.0.1:4318``; once per process."""
    if _tracer is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    # Sampling one in ten costs 9 % of the throughput of requests answered from memory.
    os.environ.setdefault("OTEL_TRACES_SAMPLER_ARG", "0.01")
    provider = TracerProvider(resource=Resource.create({"service.name": f"samclip-{service}"}))
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use(provider.get_tracer("samclip"))


def use(tracer: Tracer | None) -> None:
    """Make spans with this tracer from now on, or none if it is None."""
    global _tracer
    _tracer = tracer


def span(
    name: str,
    kind: SpanKind = INTERNAL,
    within: Context | None = None,
    links: Sequence[Link] = (),
) -> AbstractContextManager[Span]:
    """Open a span within the current one or ``within``.

    Only a request (SERVER) starts a trace. A trace that is not sampled gets no further spans.
    """
    if _tracer is None or (kind is not SERVER and not get_current_span(within).is_recording()):
        return _NOTHING
    # An error's text may quote the request, so it is not recorded.
    return _tracer.start_as_current_span(
        name, within, kind, links=links, record_exception=False, set_status_on_exception=False
    )


def caller(metadata: Mapping[str, str]) -> Context | None:
    """Return the parent span that a request names, for ``within``."""
    return _W3C.extract(metadata) if _tracer else None


def headers() -> tuple[tuple[str, str], ...]:
    """Return the metadata that gives the current span to the next service."""
    if _tracer is None:
        return ()
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return tuple(carrier.items())


@contextmanager
def shared(name: str, members: Sequence[Span]) -> Iterator[None]:
    """Open one span for work that several spans wait for."""
    if _tracer is None:
        yield
        return
    first, *others = sorted(members, key=lambda member: not member.is_recording())
    links = [Link(other.get_span_context()) for other in others]
    with span(name, within=set_span_in_context(first), links=links) as work:
        work.set_attribute("members", len(members))
        for other in others:
            other.add_link(work.get_span_context())
        yield
