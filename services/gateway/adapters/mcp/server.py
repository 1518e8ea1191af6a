"""``samclip mcp``: the service as tools for assistants, over stdio or HTTP.

A process of its own, which asks a running service through the public client.
"""

import argparse
import base64
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import samclip
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from samclip.cli.service import add_service, channel
from samclip.cli.usage import Parser, UsageError

KEY = re.compile(r"[0-9a-f]{64}")
DATA_URI = re.compile(r"data:image/[a-z]+;base64,", re.IGNORECASE)
INSTRUCTIONS = (
    "Tools about photographs. `image` is a file as base64 or a data URI; or, to send it only once, "
    "the `image_key` of an earlier answer. Addresses and paths are not read. Points and boxes are "
    "in pixels, (0, 0) the top left corner. `model` is a name that the tool `models` lists; "
    "without it, the service's default answers, or the collection's own."
)
MAX_BODY = 64 * 2**20  # bytes of a call over HTTP: a photograph in base64
MAX_OUTLINE = 200  # points: more are of no use to an assistant


class Tools:
    """The tools, each of which asks the service with the key of its caller."""

    def __init__(self, options: Mapping[str, Any], api_key: str | None):
        self._options, self._api_key = options, api_key

    @asynccontextmanager
    async def _client(
        self, context: Context, model: str = ""
    ) -> AsyncIterator[samclip.AsyncClient]:
        """Open a client with the caller's key. Its errors become those of the tool."""
        key, request = self._api_key, context.request_context.request
        if request is not None:  # over stdio, the caller is the user who started this process
            bearer = request.headers.get("authorization", "")
            key = request.headers.get("x-api-key") or re.sub("^[Bb]earer +", "", bearer)
        try:
            async with samclip.AsyncClient(**self._options, api_key=key) as client:
                yield client.using(model) if model else client
        except (samclip.ServiceError, ValueError) as error:
            raise ToolError(str(error)) from error

    async def classify(
        self, image: str, labels: list[str], context: Context, model: str = ""
    ) -> dict[str, Any]:
        """Say what an image shows: the labels with their scores, best first."""
        async with self._client(context, model) as client:
            photo = photograph(client, image)
            scores = await photo.classify(labels)
            return {"image_key": photo.key, "scores": [asdict(score) for score in scores]}

    async def segment(
        self,
        image: str,
        context: Context,
        points: Sequence[tuple[float, float]] = (),
        negative: Sequence[tuple[float, float]] = (),
        box: tuple[float, float, float, float] | None = None,
        model: str = "",
    ) -> dict[str, Any]:
        """Outline one object: the one with these points, without the negative ones, or in a box."""
        async with self._client(context, model) as client:
            photo = photograph(client, image)
            masks = await photo.segment(points, negative=negative, box=box)
            return {"image_key": photo.key, "objects": [described(mask) for mask in masks]}

    async def find(
        self, image: str, texts: list[str], context: Context, model: str = ""
    ) -> dict[str, Any]:
        """Find all objects in an image that the texts describe; none if there are none."""
        async with self._client(context, model) as client:
            photo = photograph(client, image)
            found = (await photo.segment(text=texts)).things
            return {"image_key": photo.key, "objects": [described(best) for best, *_ in found]}

    async def search(
        self, collection: str, text: str, context: Context, top_k: int = 10, model: str = ""
    ) -> dict[str, Any]:
        """Search a collection for the images that a text describes, best first."""
        async with self._client(context, model) as client:
            hits = await client.search(collection, text=text, top_k=top_k)
            return {"hits": [asdict(hit) for hit in hits]}

    async def describe(self, context: Context, collection: str = "") -> dict[str, Any]:
        """List the collections, or describe one: its number of images and their model."""
        async with self._client(context) as client:
            collections = await client.describe(collection)
            return {"collections": [asdict(about) for about in collections]}

    async def models(self, context: Context) -> dict[str, Any]:
        """List the models of the service: their names, states, and whether they make masks."""
        async with self._client(context) as client:
            return {"models": [asdict(model) for model in await client.models()]}


def photograph(client: samclip.AsyncClient, image: str) -> samclip.AsyncPhoto:
    """Return the image of a tool call. Raises ValueError for a path or an address."""
    if KEY.fullmatch(image):
        return client.by_key(image)
    try:
        return client.image(base64.b64decode(DATA_URI.sub("", image, count=1), validate=True))
    except ValueError as error:
        raise ValueError(
            "image is neither a file in base64 (or a data URI) nor the key of an earlier answer; "
            "paths and addresses are not read"
        ) from error


def described(mask: samclip.Mask) -> dict[str, Any]:
    """Return an object with its box and the outline of its largest part, in pixels."""
    outline_N2 = max(mask.polygons, key=len, default=np.empty((0, 2)))
    step = max(1, -(-len(outline_N2) // MAX_OUTLINE))
    return {
        "label": mask.label,
        "score": round(mask.score, 3),
        "box": list(mask.box),
        "area": mask.area,
        "outline": outline_N2[::step].tolist(),
    }


def build(options: Mapping[str, Any], api_key: str | None) -> MCPServer:
    """Return the server of all tools; ``options`` are those of ``samclip.AsyncClient``."""
    server = MCPServer("samclip", instructions=INSTRUCTIONS, version=samclip.__version__)
    tools = Tools(options, api_key)
    asked = (tools.classify, tools.segment, tools.find, tools.search, tools.describe, tools.models)
    for tool in asked:
        server.add_tool(tool)
    return server


def port(text: str) -> int:
    """Return the number of a port. Raises ValueError."""
    if not 0 < (number := int(text)) < 2**16:
        raise ValueError
    return number


def parser() -> argparse.ArgumentParser:
    """Return the options of ``samclip mcp``."""
    made = Parser(
        prog="samclip mcp",
        description="Offer a running service to assistants, by the Model Context Protocol. Over "
        "HTTP, each caller sends a key of its own, as x-api-key or as a bearer token.",
        examples=["samclip mcp", "samclip mcp --http 8001 --server 127.0.0.1:9000"],
    )
    made.add_argument(
        "--http", type=port, metavar="PORT", help="serve http://127.0.0.1:PORT/mcp instead of stdio"
    )
    add_service(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the assistant or Ctrl-C ends it; return the exit code."""
    args = parser().parse_args(argv)
    try:
        server = build(channel(args), args.api_key)
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # a file of --ca or --cert
        print(f"samclip mcp: {error}", file=sys.stderr)
        return 1
    if args.http is None:
        server.run()
    else:
        server.run(
            "streamable-http", port=args.http, stateless_http=True, max_request_body_size=MAX_BODY
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
