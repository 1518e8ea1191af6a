"""What is asked: the photographs, and requests about them as both transports send them.

An image is ``new`` (nobody has seen the file: the same one with other bytes behind its end), a
``file`` that the service knows already, or the ``key`` of one.
"""

import hashlib
import io
import json
import os
from functools import cache
from itertools import count
from typing import Any, Literal

from PIL import Image
from samclip.v1 import samclip_pb2 as pb

Kind = Literal["embed", "classify", "click", "semantic"]
Images = Literal["new", "file", "key"]

LABELS = ("a cat", "an astronaut", "a cup of coffee", "a rocket", "a motorcycle", "a dog")
METHODS = {
    "embed": "/samclip.v1.BackboneService/Embed",
    "classify": "/samclip.v1.ClassificationService/Classify",
    "click": "/samclip.v1.SegmentationService/Segment",
    "semantic": "/samclip.v1.SemanticSegmentationService/SegmentText",
}
PATHS = {"embed": "/embed", "classify": "/classify", "click": "/segment", "semantic": "/semantic"}
_BOUNDARY = "samclip-bench"
_fresh = count()


@cache
def files() -> tuple[bytes, ...]:
    """JPEG files of photographs that scikit-image ships, of 0.14 to 0.27 megapixels."""
    from skimage import data

    pictures = (data.chelsea(), data.astronaut(), data.coffee(), data.rocket())
    return tuple(_jpeg(picture) for picture in pictures)


def _jpeg(picture_HW3: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture_HW3).save(file, "JPEG", quality=92)
    return file.getvalue()


def known(number: int) -> bytes:
    return files()[number % len(files())]


def fresh(number: int) -> bytes:
    """A file that was never sent before, by whatever process."""
    return known(number) + os.getpid().to_bytes(4, "little") + next(_fresh).to_bytes(8, "little")


def key(number: int) -> str:
    return hashlib.sha256(known(number)).hexdigest()


def point(number: int) -> tuple[float, float]:
    """Another one each time, inside of every photograph."""
    return 20.0 + number % 200, 20.0 + 7 * number % 200


def message(kind: Kind, images: Images, number: int) -> Any:
    """The request of gRPC."""
    if images == "key":
        image = pb.Image(key=key(number))
    else:
        image = pb.Image(encoded=fresh(number) if images == "new" else known(number))
    if kind == "embed":
        return pb.EmbedRequest(image=image, outputs=[pb.CLIP_POOLED], inline=True)
    if kind == "classify":
        return pb.ClassifyRequest(images=[image], labels=LABELS)
    if kind == "semantic":
        return pb.SegmentTextRequest(image=image, labels=LABELS)
    x, y = point(number)
    return pb.SegmentRequest(image=image, prompts=[pb.Prompt(points=[pb.Point(x=x, y=y)])])


def body(kind: Kind, images: Images, number: int) -> tuple[str, bytes]:
    """The same for HTTP, (content type, body): a form with the file, or JSON with the key."""
    fields = _fields(kind, number)
    if images == "key":
        return "application/json", json.dumps({"image": {"key": key(number)}, **fields}).encode()
    return form(fresh(number) if images == "new" else known(number), fields)


def _fields(kind: Kind, number: int) -> dict[str, Any]:
    if kind == "embed":
        return {"outputs": ["CLIP_POOLED"], "inline": True}
    if kind == "click":
        x, y = point(number)
        return {"prompts": [{"points": [{"x": x, "y": y}]}]}
    return {"labels": list(LABELS)}


def form(file: bytes, fields: dict[str, Any]) -> tuple[str, bytes]:
    """A multipart form: (content type, body)."""
    parts = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            text = one if isinstance(one, str) else json.dumps(one)
            parts.append(f'form-data; name="{name}"\r\n\r\n{text}'.encode())
    head = 'form-data; name="image"; filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    parts.append(head.encode() + file)
    start = f"--{_BOUNDARY}\r\nContent-Disposition: ".encode()
    content = b"".join(start + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", content
