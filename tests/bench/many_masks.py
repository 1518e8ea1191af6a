"""Part ``masks``: 64 masks of a picture of 1024² in one request, and what their encoding takes."""

import io
import time

import grpc
import numpy as np
from PIL import Image
from samclip.v1 import samclip_pb2 as pb
from samclip.v1.samclip_pb2_grpc import SegmentationServiceStub
from skimage import data

from tests.bench.bench import Bench
from tests.bench.lines import Line, ratio, seen

SIDE, SPOTS = 1024, 8  # clicks on an 8×8 grid


def run(bench: Bench) -> list[Line]:
    """The encodings of a request run one after the other: their time is part of its own."""
    file = io.BytesIO()
    Image.fromarray(data.astronaut()).resize((SIDE, SIDE)).save(file, "JPEG")
    samples, encoding = [], []
    with grpc.insecure_channel(bench.service.grpc) as channel:
        segment = SegmentationServiceStub(channel).Segment
        known = segment(_request(pb.Image(encoded=file.getvalue()))).image.key
        for _ in range(bench.rounds):
            before = bench.service.stages().get("encode", (0.0, 0.0))[0]
            begin = time.perf_counter()
            segment(_request(pb.Image(key=known)))
            samples.append([1000 * (time.perf_counter() - begin)])
            encoding.append([1000 * (bench.service.stages()["encode"][0] - before)])
    whole, encode = (
        seen("64 masks of 1024²", samples),
        seen("64 masks of 1024²: encoding", encoding),
    )
    return [whole, encode, ratio("encoding / request, 64 masks", encode, whole)]


def _request(image: pb.Image) -> pb.SegmentRequest:
    centres = (np.arange(SPOTS) + 0.5) * SIDE / SPOTS
    points = [pb.Point(x=x, y=y) for y in centres for x in centres]
    return pb.SegmentRequest(image=image, prompts=[pb.Prompt(points=[point]) for point in points])
