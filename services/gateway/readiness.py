"""Whether the service is ready: asked of every application, at Serve's inner port."""

import asyncio
import os
from typing import Any

import httpx

from services import front_door
from services.settings import Settings

TIMEOUT_S = 2.0


class Readiness:
    """Asks the applications that run here. One that answers has its model loaded and warm."""

    def __init__(self, settings: Settings):
        self.applications = [
            name for name in front_door.applications(settings) if name != "gateway"
        ]
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.inner_http_port}",
            headers={front_door.SECRET_HEADER: os.environ.get(front_door.SECRET_VARIABLE, "")},
            timeout=TIMEOUT_S,
        )

    async def report(self) -> dict[str, dict[str, Any]]:
        """Return for each application ``ready`` and what it tells of its dependencies."""
        reports = await asyncio.gather(*map(self._ask, self.applications))
        return dict(zip(self.applications, reports, strict=True))

    async def _ask(self, application: str) -> dict[str, Any]:
        try:
            answer = await self._client.get(f"/{application}/healthz")
            if answer.headers.get("content-type") == "application/problem+json":
                return {"ready": False, "reason": answer.json()["detail"]}
            answer.raise_for_status()
            return {"ready": True, **answer.json()}
        except (httpx.HTTPError, ValueError) as error:
            return {"ready": False, "reason": str(error) or type(error).__name__}
