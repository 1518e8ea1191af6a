"""One request as an operator sees it: counted, timed, traced, and under one id."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.observability import logs, metrics, tracing
from services.request import status

REQUEST_ID = "request_id"  # Serve's own name for it, set by the front door

logger = logging.getLogger(__name__)


@dataclass
class Observed:
    """A request: its rpc and when it had come in, as far as is known, and the code of its end."""

    rpc: str
    code: str = "OK"
    since: float = field(default_factory=time.perf_counter)


@contextmanager
def request(service: str, rpc: str, metadata: Mapping[str, str]) -> Iterator[Observed]:
    """Observe the answer to one request, or the error that it ends with; ``metadata`` are headers.

    What goes wrong inside, and is in no table of errors, is logged with its stack.
    """
    identity = metadata.get(REQUEST_ID) or uuid.uuid4().hex
    logs.request_id.set(identity)
    seen = Observed(rpc)
    parent = tracing.caller(metadata)
    with (
        metrics.INFLIGHT.labels(service).track_inprogress(),
        tracing.span(service, tracing.SERVER, parent) as span,
    ):
        try:
            yield seen
        except asyncio.CancelledError:
            seen.code = "CANCELLED"
            metrics.SHED.labels("cancelled").inc()
            raise
        except Exception as error:
            failure = status.describe(error, identity)
            seen.code = failure.status.code.name
            span.set_status(tracing.ERROR)
            if failure.status is status.INTERNAL:
                logger.exception("%s.%s failed; request id %s", service, seen.rpc, identity)
            raise
        finally:
            metrics.REQUESTS.labels(service, seen.rpc, seen.code).inc()
            seconds = time.perf_counter() - seen.since
            metrics.REQUEST_SECONDS.labels(service, seen.rpc).observe(seconds)
            span.update_name(f"{service}/{seen.rpc}")
            span.set_attributes({"request_id": identity, "code": seen.code})
            fields = {"service": service, "rpc": seen.rpc, "code": seen.code, "seconds": seconds}
            logger.info("answered", extra={"fields": fields})
