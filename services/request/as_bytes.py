"""An embedding over HTTP as bytes: little-endian float16, its shape and geometry in headers."""

import json

from samclip.v1 import samclip_pb2 as pb
from starlette.responses import Response

from samclip_core.errors import InvalidRequest

BYTES = "application/octet-stream"
"""The media type of bytes."""
MODEL = "x-samclip-model"
"""The header with the digest of the checkpoint that answered."""
OF_MASKS = (pb.SAM, pb.SAM_FINE)


def prepare(request: pb.EmbedRequest) -> None:
    """Ask for the data. Raises InvalidRequest unless one output that masks need is asked for."""
    if len(request.outputs) != 1 or request.outputs[0] not in OF_MASKS or request.texts:
        raise InvalidRequest(
            f"{BYTES} holds one embedding: send outputs=SAM or outputs=SAM_FINE and no texts, or "
            "accept application/json"
        )
    request.inline = True


def response(request: pb.EmbedRequest, reply: pb.EmbedResponse) -> Response:
    """Return the tensor of a reply to a request that was ``prepare``d."""
    (tensor,), image = reply.tensors, reply.image
    size = request.size or reply.model.image_size
    geometry = {"height": image.height, "width": image.width, "size": size}
    headers = {
        "etag": f'"{image.key}"',
        "x-samclip-shape": json.dumps([*tensor.shape]),
        "x-samclip-geometry": json.dumps({**geometry, "squash": reply.model.squash}),
        MODEL: reply.model.digest,
        "cache-control": "private, no-store",
    }
    return Response(tensor.data, headers=headers, media_type=BYTES)
