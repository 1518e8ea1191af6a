"""One request as an operator sees it: counted, timed, traced and logged under one id."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.observability import logs, metrics, tracing
from services.request import status

REQUEST_ID = "request_id"  # Serve's name for it; the front door sets it
COUNTED = "x-samclip-counted"
"""Header of requests that an adapter passes on, and has counted under its own name. The front door
removes it from incoming requests."""

logger = logging.getLogger(__name__)


@dataclass
class Observed:
    """A request: its rpc, start and end as far as they are known, and its status code."""

    rpc: str
    code: str = "OK"
    since: float = field(default_factory=time.perf_counter)
    until: float | None = None  # when the reply was there, which the caller may take slowly


@contextmanager
def record(service: str, rpc: str, metadata: Mapping[str, str]) -> Iterator[Observed]:
    """Record one request and its answer or error; ``metadata`` are its headers.

    Logs the stack trace of an error that is not in the table of ``services.request.status``.
    """
    identity = metadata.get(REQUEST_ID) or uuid.uuid4().hex
    logs.request_id.set(identity)
    observed = Observed(rpc)
    parent = tracing.caller(metadata)
    with (
        metrics.INFLIGHT.labels(service).track_inprogress(),
        tracing.span(service, tracing.SERVER, parent) as span,
    ):
        try:
            yield observed
        except (asyncio.CancelledError, GeneratorExit):  # the latter ends a stream of answers
            observed.code = "CANCELLED"
            metrics.SHED.labels("cancelled").inc()
            raise
        except Exception as error:
            failure = status.describe(error, identity)
            observed.code = failure.status.code.name
            span.set_status(tracing.ERROR)
            if failure.status is status.INTERNAL:
                logger.exception("%s.%s failed; request id %s", service, observed.rpc, identity)
            raise
        finally:
            if COUNTED not in metadata:
                metrics.REQUESTS.labels(service, observed.rpc, observed.code).inc()
            seconds = (observed.until or time.perf_counter()) - observed.since
            metrics.REQUEST_SECONDS.labels(service, observed.rpc).observe(seconds)
            span.update_name(f"{service}/{observed.rpc}")
            span.set_attributes({"request_id": identity, "code": observed.code})
            fields = {
                "service": service,
                "rpc": observed.rpc,
                "code": observed.code,
                "seconds": seconds,
            }
            logger.info("answered", extra={"fields": fields})
