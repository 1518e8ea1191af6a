from collections.abc import Iterator, Mapping

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.observability import tracing
from services.request import calls
from tests.in_process import SECRET


@pytest.fixture(autouse=True)
def named_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take requests of these tests that name no secret as the front door's."""

    def admitted(headers: Mapping[str, str]) -> bool:
        return headers.get(calls.SECRET_HEADER, SECRET) == SECRET

    monkeypatch.setattr(calls, "admitted", admitted)


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Export the spans of the test to memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider.get_tracer("test"))
    yield exporter
    tracing.use(None)
    provider.shutdown()
