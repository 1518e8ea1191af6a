"""A load of every kind of request, and its outcomes as the caller sees them."""

import base64
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import grpc
import httpx
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.e2e.conftest import Service
from tests.in_process import png

CALLERS = 8
LABELS = ["a cat", "a dog"]
CODES = {200: "OK", 400: "INVALID_ARGUMENT", 409: "FAILED_PRECONDITION", 404: "NOT_FOUND"}
CODES |= {415: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED"}
Outcome = tuple[str, str, str]  # service, rpc, code


class Load:
    """A load of every kind of request, and its outcomes as the caller sees them."""

    def __init__(self, service: Service, api_key: str):
        self.channel = grpc.insecure_channel(service.address)
        self.api_key = ("x-api-key", api_key)
        self.http = httpx.Client(base_url=service.url, headers=[self.api_key], timeout=300)
        self.fresh = count()
        known = self.picture()
        self.click = {
            "inputs": [
                tensor("image", "BYTES", [1], base64.b64encode(known).decode()),
                tensor("points", "FP32", [1, 2], 9, 9),
                tensor("point_labels", "INT32", [1], 1),
            ]
        }
        self.key = self.http.post("/embed", files={"image": known}).json()["image"]["key"]
        self.kinds: list[Callable[[], Outcome]] = [
            lambda: self.grpc("ClassificationService", "Classify", self.classify(self.image)),
            lambda: self.grpc("ClassificationService", "Classify", self.classify()),
            lambda: self.grpc("ClassificationService", "Classify", self.classify(self.unknown)),
            lambda: self.grpc("SegmentationService", "Segment", self.segment(self.image)),
            lambda: self.grpc("SegmentationService", "Segment", self.segment(self.unknown)),
            lambda: self.grpc("RetrievalService", "Search", pb.SearchRequest(collection="none")),
            lambda: self.post("/classify", json={"image": {"key": self.key}, "labels": LABELS}),
            lambda: self.post("/classify", json={"image": {"key": "0" * 64}, "labels": LABELS}),
            lambda: self.post("/classify", content=b"{", headers={"content-type": "text/x"}),
            lambda: self.post("/semantic", json={"colour": 1}),
            lambda: self.post("/semantic", json={"image": {"key": self.key}, "labels": LABELS}),
            lambda: self.post("/describe", json={"collection": "none"}),
            lambda: self.post("/v2/models/segment/infer", json=self.click),
        ]

    def picture(self) -> bytes:
        return png(7, 64, 48, noise=next(self.fresh))

    @property
    def image(self) -> pb.Image:
        return pb.Image(key=self.key)

    unknown = pb.Image(key="0" * 64)

    def classify(self, *images: pb.Image) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(images=images, labels=LABELS)

    def segment(self, image: pb.Image) -> pb.SegmentRequest:
        return pb.SegmentRequest(image=image, prompts=[pb.Prompt(points=[pb.Point(x=9, y=9)])])

    def grpc(self, service: str, name: str, request: Message, **metadata: str) -> Outcome:
        call = getattr(getattr(rpc, f"{service}Stub")(self.channel), name)
        try:
            call(request, timeout=300, metadata=(self.api_key, *metadata.items()))
        except grpc.RpcError as error:
            return service, name, error.code().name
        return service, name, "OK"

    def post(self, path: str, **body: Any) -> Outcome:
        service, name = {
            "/classify": ("ClassificationService", "Classify"),
            "/semantic": ("SemanticSegmentationService", "SegmentText"),
            "/describe": ("RetrievalService", "Describe"),
            "/v2/models/segment/infer": ("OpenInference", "infer"),  # not as Segment too
        }[path]
        return service, name, CODES[self.http.post(path, **body).status_code]

    def many_new_images(self) -> Outcome:
        """Send more images than the queue holds, so that the request may be refused."""
        images = [pb.Image(encoded=self.picture()) for _ in range(16)]
        return self.grpc("ClassificationService", "Classify", self.classify(*images))

    def run(self, requests: int) -> Counter[Outcome]:
        def ask(number: int) -> Outcome:
            if number % 50 == 0:
                return self.many_new_images()
            return self.kinds[number % len(self.kinds)]()

        with ThreadPoolExecutor(CALLERS) as pool:
            return Counter(pool.map(ask, range(requests)))

    def close(self) -> None:
        self.channel.close()
        self.http.close()


def tensor(name: str, datatype: str, shape: list[int], *data: object) -> dict[str, Any]:
    """Return an input of the Open Inference Protocol."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
