"""OpenAI's embeddings: ``POST /v1/embeddings`` and ``GET /v1/models``.

A string is a text, or an image if it is a data URI; both have vectors in the same space.
Parts of messages, as OpenAI and vLLM write them, may take the place of strings.
"""

import base64
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import Adapter, image_of
from services.request import status, wire
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.request.limits import (
    MAX_EXPANDED,
    MAX_VECTORS,
    VALUE_BYTES,
    check_images,
    check_most,
    check_text,
)
from services.request.messages import ADDRESS
from services.request.transit import aside, rendered
from services.settings import Settings

FIELDS = {"input", "messages", "model", "encoding_format", "dimensions", "user"}
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


@dataclass(frozen=True)
class Question:
    """The inputs of a request in order: texts, and images from data URIs."""

    model: str
    inputs: Sequence[str | pb.Image]
    as_base64: bool

    @classmethod
    def read(cls, fields: dict[str, Any], settings: Settings) -> Self:
        """Read a request. Raises InvalidRequest for what this service does not offer."""
        if unknown := sorted(set(fields) - FIELDS):
            raise InvalidRequest(f"unknown field {unknown[0][:80]!r}; expected {sorted(FIELDS)}")
        if fields.get("dimensions") is not None:
            raise InvalidRequest("dimensions cannot be chosen: leave the field out")
        encoding = fields.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            shown = reprlib.repr(encoding)
            raise InvalidRequest(f"encoding_format is {shown}, expected float or base64")
        model = fields.get("model")
        if not isinstance(model, str):
            raise InvalidRequest("no model: send the name of one, as GET /v1/models lists them")
        given = _said(fields) if fields.get("messages") is not None else fields.get("input")
        several = given if isinstance(given, list) else [given]
        if not several:
            raise InvalidRequest("input is empty: send at least one string")
        check_most(len(several), "{} inputs", MAX_VECTORS, "send them in several requests")
        inputs = [_input(index, value) for index, value in enumerate(several)]
        images = sum(isinstance(value, pb.Image) for value in inputs)
        if images:
            check_images(range(images), settings.max_images)
        return cls(model, inputs, encoding == "base64")


def _said(fields: dict[str, Any]) -> object:
    """Return the part of the message in vLLM's form of a request. Raises InvalidRequest."""
    match fields["messages"]:
        case [{"content": [part] | str(part)}] if fields.get("input") is None:
            return [part]
    raise InvalidRequest(
        "messages is not one message with one part, a text or an image_url, in place of input: "
        "send several parts as a list in input, where each has a vector of its own"
    )


def _input(index: int, given: object) -> str | pb.Image:
    what = f"input {index}"
    match given:
        case {"type": "image_url" | "input_image", "image_url": {"url": url} | url}:
            return image_of(url, what)
        case {"type": "text" | "input_text", "text": text}:
            given = text
    if isinstance(given, int | list):
        raise InvalidRequest(
            f"{what} has token numbers, which belong to another tokenizer: send strings "
            "(LangChain: check_embedding_ctx_length=False)"
        )
    if not isinstance(given, str):
        raise InvalidRequest(f"{what} is not a string: send a text or a data URI")
    if given[:5].lower() == "data:" or ADDRESS.match(given):
        return image_of(given, what)
    check_text(given, what, MAX_EXPANDED)
    return given


class OpenAI(Adapter):
    """The two routes that a client of OpenAI's embeddings needs."""

    name = "OpenAI"

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "POST", "/v1/embeddings", self.embeddings)
        self.route(app, "GET", "/v1/models", self.models)
        self.refuse_others(app, "/v1/")

    def refuse(self, failure: status.Failure) -> dict[str, Any]:
        http = failure.status.http
        kind = KINDS.get(http, "invalid_request_error" if http < 500 else "server_error")
        error = {"message": failure.message, "type": kind, "param": None, "code": CODES.get(http)}
        return {"error": error}

    async def models(self, request: Request, context: RequestContext) -> Response:
        default = wire.model_id(await self.applications.find_model(context))
        _, *others = await self.applications.listed(context)
        names = [default, *(model.name for model in others)]
        about = {"object": "model", "created": 0, "owned_by": "samclip"}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in names]})

    async def embeddings(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request, context)
        question = await aside(context.priority, Question.read, fields, self.settings)
        context = await self.applications.naming(question.model, context)
        texts = [value for value in question.inputs if isinstance(value, str)]
        images = [value for value in question.inputs if isinstance(value, pb.Image)]
        model, *vectors = await self.applications.embed(texts, images, context)
        self.applications.check(question.model, model, context)
        of_texts, of_images = map(iter, vectors)
        vectors_ND = [
            next(of_texts if isinstance(value, str) else of_images) for value in question.inputs
        ]
        size = VALUE_BYTES * sum(vector_D.size for vector_D in vectors_ND)
        context.reply.reserved.hold(size)
        return await rendered(
            context.priority, size, lambda: _reply(question, wire.model_id(model), vectors_ND)
        )


def _reply(question: Question, model: str, vectors_ND: Sequence[NDArray[np.float32]]) -> Response:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
            if question.as_base64
            else vector_D.tolist(),
        }
        for index, vector_D in enumerate(vectors_ND)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # not counted: the service charges for none
    return LongJSON({"object": "list", "data": data, "model": model, "usage": usage})
