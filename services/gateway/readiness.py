"""Readiness of the service, collected from every application through Serve's inner port."""

import asyncio
import os
from time import monotonic
from typing import Any

import httpx

from services.request import calls
from services.settings import Settings

TIMEOUT_S = 2.0
FRESH_S = 1.0
"""Seconds for which all callers share a report, which bounds the load on the applications."""
FRESH_WHILE_STARTING_S = 0.1


Report = dict[str, dict[str, Any]]


class Readiness:
    """Polls the applications that run here. An application that answers has a warm model."""

    def __init__(self, settings: Settings):
        self.applications = [name for name in calls.applications(settings) if name != "gateway"]
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.inner_http_port}",
            headers={calls.SECRET_HEADER: os.environ.get(calls.SECRET_VARIABLE, "")},
            timeout=TIMEOUT_S,
        )
        self._asking: asyncio.Task[Report] | None = None
        self._good_until = 0.0

    async def report(self) -> Report:
        """Return ``ready`` and the state of the dependencies of each application.

        Callers within ``FRESH_S`` share one report.
        """
        if self._asking is None or (self._asking.done() and monotonic() > self._good_until):
            self._asking = asyncio.create_task(self._ask_all())
        # A caller that disconnects must not cancel the report for others.
        return await asyncio.shield(self._asking)

    async def all_ready(self) -> bool:
        return all(state["ready"] for state in (await self.report()).values())

    async def ready(self, application: str) -> bool:
        """Return whether an application is ready; one that runs elsewhere counts as ready.

        Segmentation is not ready if its checkpoint makes no masks.
        """
        state = (await self.report()).get(application, {"ready": True})
        without_masks = state.get("model", {}).get("without_masks", False)
        return bool(state["ready"]) and not (application == "segmentation" and without_masks)

    async def _ask_all(self) -> Report:
        answers = await asyncio.gather(*map(self._ask, self.applications))
        ready = all(answer["ready"] for answer in answers)
        self._good_until = monotonic() + (FRESH_S if ready else FRESH_WHILE_STARTING_S)
        return dict(zip(self.applications, answers, strict=True))

    async def _ask(self, application: str) -> dict[str, Any]:
        try:
            answer = await self._client.get(f"/{application}/healthz")
            if answer.headers.get("content-type") == "application/problem+json":
                return {"ready": False, "reason": answer.json()["detail"]}
            answer.raise_for_status()
            return {"ready": True, **answer.json()}
        except (httpx.HTTPError, ValueError) as error:
            return {"ready": False, "reason": str(error) or type(error).__name__}
