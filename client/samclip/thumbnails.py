"""Thumbnails of indexed images: small pictures in their metadata, which the playground shows."""

import base64
import io
from collections.abc import Mapping

from PIL import Image

from samclip.images import turn_of
from samclip.transport import Session
from samclip.types import THUMBNAIL, Indexed
from samclip.v1 import samclip_pb2 as pb

LONGEST = 112  # pixels of its longer side
MOST_METADATA = 4096  # bytes of an item that a service takes, unless its settings say otherwise
PREFIX = "data:image/jpeg;base64,"  # of a thumbnail; metadata of its name may be any text
TOO_LARGE = "the metadata has "  # a service's error about more than that
MOST_PIXELS = 64_000_000  # the same of an image: a larger one is not decoded


def with_thumbnail(metadata: Mapping[str, str], encoded: bytes) -> dict[str, str]:
    """Add the thumbnail of an image file to its metadata, unless they have one or no room.

    A file that cannot be read has none: the service says why.
    """
    room = MOST_METADATA - len(THUMBNAIL)
    room -= sum(
        len(f"{key}{value}".encode(errors="backslashreplace")) for key, value in metadata.items()
    )
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MOST_PIXELS:
                return dict(metadata)
            image.draft("RGB", (2 * LONGEST, 2 * LONGEST))
            turn = turn_of(image)
            image.thumbnail((LONGEST, LONGEST))
            picture = image.convert("RGB")
            picture = picture if turn is None else picture.transpose(turn)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return dict(metadata)
    side = LONGEST
    while side >= 16:
        picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=70, comment=b"")  # not that of the photograph
        made = PREFIX + base64.b64encode(file.getvalue()).decode()
        if len(made) <= room:
            return {THUMBNAIL: made, **metadata}
        side = int(0.85 * side)
    return dict(metadata)


async def index(session: Session, request: pb.IndexRequest) -> Indexed:
    """Index images; where the service has no room for their thumbnails, without them."""
    reply = await session.ask(request)
    errors = {error.id: error.message for error in reply.errors}
    large = [item for item in request.items if TOO_LARGE in errors.get(item.id, "")]
    large = [item for item in large if item.metadata.get(THUMBNAIL, "").startswith(PREFIX)]
    if not large:
        return Indexed(reply.indexed, errors, reply.replaced)
    for item in large:
        del item.metadata[THUMBNAIL]
        errors.pop(item.id, None)  # ids may be equal
    again = pb.IndexRequest(
        collection=request.collection,
        items=large,
        objects=request.objects,
        tiles=request.tiles,
        made_by=request.made_by if request.HasField("made_by") else None,
    )
    done = await session.ask(again)
    errors |= {error.id: error.message for error in done.errors}
    return Indexed(reply.indexed + done.indexed, errors, reply.replaced + done.replaced)
