"""The inference service of Weaviate's module multi2vec-clip: texts and images to vectors."""

import asyncio
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import Adapter, image_of
from services.gateway.adapters.applications import Applications
from services.gateway.readiness import Readiness
from services.request import json_bodies
from services.request.context import RequestContext
from services.request.limits import check_images

PREFIX = "/adapters/weaviate"


class Weaviate(Adapter):
    """The three routes that Weaviate calls."""

    name = "Weaviate"

    def __init__(self, applications: Applications, readiness: Readiness):
        super().__init__(applications)
        self.readiness = readiness

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "GET", f"{PREFIX}/.well-known/ready", self.ready)
        self.route(app, "GET", f"{PREFIX}/meta", self.meta)
        self.route(app, "POST", f"{PREFIX}/vectorize", self.vectorize)

    async def ready(self, request: Request, context: RequestContext) -> Response:
        await self.readiness.check()
        return Response(status_code=204)

    async def meta(self, request: Request, context: RequestContext) -> Response:
        return JSONResponse({"model": await self.applications.find_model(context)})

    async def vectorize(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request)
        texts, files = _strings(fields, "texts"), _strings(fields, "images")
        if files:
            check_images(files, self.settings.max_images)
        names = [f"image {index}" for index in range(len(files))]
        images = await asyncio.to_thread(lambda: [*map(image_of, files, names)])
        seen = await self.applications.embed(images, context)
        read_TD = (await self.applications.embed_text(texts, context))[1] if texts else ()
        return await asyncio.to_thread(_reply, read_TD, seen)


def _reply(texts: Iterable[Any], images: Iterable[Any]) -> Response:
    vectors = {"textVectors": texts, "imageVectors": images}
    return JSONResponse({name: [one.tolist() for one in found] for name, found in vectors.items()})


def _strings(fields: json_bodies.Fields, name: str) -> list[str]:
    found = fields.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"{name} is not a list of strings")
    return found
