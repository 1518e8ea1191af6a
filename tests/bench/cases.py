"""What is measured: the model by itself, the library, and the service over both its transports.

A case is a call that gets the number of its round, so that it can send a photograph that nobody has
seen before: the same file with a few bytes behind its end is another file to the cache.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc
import httpx
from PIL import Image
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc
from skimage import data

from samclip_core import Prompt, SamClip, scores

LABELS = ("a cat", "an astronaut", "a cup of coffee", "a rocket", "a motorcycle", "a dog")
AT_ONCE = 8


@dataclass(frozen=True)
class Case:
    """``call`` does the thing ``times`` times."""

    group: str
    name: str
    call: Callable[[int], object]
    times: int = 1


class Photographs:
    """Those that scikit-image ships, as JPEG files."""

    def __init__(self) -> None:
        pictures = (data.chelsea(), data.astronaut(), data.coffee(), data.rocket())
        self._files = [_jpeg(picture) for picture in pictures]
        self._fresh = count()

    def __getitem__(self, number: int) -> bytes:
        return self._files[number % len(self._files)]

    def fresh(self, number: int) -> bytes:
        """A file that was never sent before."""
        return self[number] + next(self._fresh).to_bytes(8, "little")


def _jpeg(picture_HW3: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture_HW3).save(file, "JPEG", quality=92)
    return file.getvalue()


def in_process(model: SamClip, photos: Photographs) -> Iterator[Case]:
    """The parts of the model, and the library's calls that put them together."""
    prepared = model.prepare(photos[0])
    features = model.encode(prepared)
    text_LD = scores.class_embeddings(model.embed_text, LABELS, model.config.templates)
    pooled_D, scale = model.embed_image(features), model.config.logit_scale

    def part(name: str, call: Callable[[int], object], times: int = 1) -> Case:
        return Case("model", name, call, times)

    yield part("decode and resize", lambda i: model.prepare(photos[i]))
    yield part("encode", lambda i: model.encode_batch([prepared]))
    yield part("encode, batch", lambda i: model.encode_batch([prepared] * AT_ONCE), AT_ONCE)
    yield part("prompt decode", lambda i: model.segment(features, [_click(i)], multimask=False))
    yield part("embed labels", lambda i: model.embed_text(LABELS))
    yield part("classify", lambda i: scores.classify(pooled_D, text_LD, LABELS, scale, None))
    yield Case("library", "classify", lambda i: model.classify(photos[i], LABELS))
    yield Case("library", "click", lambda i: model.segment(photos[i], [_click(i)]))


def _click(number: int) -> Prompt:
    return Prompt(points=(_point(number),))


def _point(number: int) -> tuple[float, float]:
    """Another one each round, inside of every photograph."""
    return 20.0 + number % 200, 20.0 + 7 * number % 200


def over_grpc(channel: grpc.Channel, photos: Photographs) -> Iterator[Case]:
    """Plain stubs, as any client has them."""
    classify = rpc.ClassificationServiceStub(channel).Classify
    segment = rpc.SegmentationServiceStub(channel).Segment
    threads = ThreadPoolExecutor(AT_ONCE)

    def ask(image: pb.Image) -> pb.ClassifyResponse:
        return classify(pb.ClassifyRequest(images=[image], labels=LABELS))

    def click(image: pb.Image, number: int) -> pb.SegmentResponse:
        x, y = _point(number)
        prompt = pb.Prompt(points=[pb.Point(x=x, y=y)])
        return segment(pb.SegmentRequest(image=image, prompts=[prompt]))

    def new(number: int) -> pb.Image:
        return pb.Image(encoded=photos.fresh(number))

    def at_once(number: int) -> Sequence[object]:
        return list(threads.map(ask, [new(number + k) for k in range(AT_ONCE)]))

    known = pb.Image(key=ask(new(0)).results[0].image.key)
    yield Case("gRPC", "classify, new image", lambda i: ask(new(i)))
    yield Case("gRPC", "classify, new images at once", at_once, AT_ONCE)
    yield Case("gRPC", "classify, known image", lambda i: ask(known))
    yield Case("gRPC", "click, new image", lambda i: click(new(i), i))
    yield Case("gRPC", "click, known image", lambda i: click(known, i))


def over_http(client: httpx.Client, photos: Photographs) -> Iterator[Case]:
    """The same: forms for new images, JSON for those known by key."""

    def post(path: str, **content: Any) -> Any:
        return client.post(path, **content).raise_for_status().json()

    def ask(encoded: bytes) -> Any:
        return post("/classify", files={"image": encoded}, data={"labels": LABELS})

    def click(number: int) -> Any:
        x, y = _point(number)
        prompts = [{"points": [{"x": x, "y": y}]}]
        return post("/segment", json={"image": known, "prompts": prompts})

    known = {"key": ask(photos.fresh(0))["image"]["key"]}
    yield Case("HTTP", "classify, new image", lambda i: ask(photos.fresh(i)))
    yield Case(
        "HTTP",
        "classify, known image",
        lambda i: post("/classify", json={"image": known, "labels": LABELS}),
    )
    yield Case("HTTP", "click, known image", click)
