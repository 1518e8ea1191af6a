"""Fuzz targets: functions that take any bytes, and raise only if the code has a bug.

Hypothesis runs ``TARGETS`` in the test suite, and the coverage-guided atheris in ``make fuzz``.
``seeds`` are the initial inputs.
"""

import gzip
import io
import json
import struct
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import xxhash
from google.protobuf.message import DecodeError
from samclip import mask_codecs
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.stored_objects import MOST_BYTES, Objects
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError, InvalidRequest, SamClipError
from samclip_core.geometry import Geometry
from samclip_core.io import checkpoint, image, masks
from samclip_core.io.image import MAX_SIDE, ImageLimits
from services.batching.priority import TIMEOUT, Priority
from services.cache import entry
from services.request import bodies, limits, messages, wire
from services.request.routes import ROUTES
from services.sources.listing import items
from tests.in_process import png
from tests.vectors import D, made_up, outline, with_objects

LIMITS = ImageLimits(max_bytes=2**16, max_pixels=2**18)
NAME = "samclip:cache:fuzz"
SIZE = struct.Struct("<BB")  # height and width of a mask, before its encoding
REQUESTS = [route.request for routes in ROUTES.values() for route in routes]


def decode_image(data: bytes) -> None:
    """Decode an image: either SamClipError, or pixels of the size in the header."""
    try:
        stated = image.probe(data, LIMITS)
        pixels_HW3 = image.decode(data, LIMITS)
    except SamClipError:
        return
    assert pixels_HW3.dtype == np.uint8
    assert pixels_HW3.shape == (stated[1], stated[0], 3)
    assert pixels_HW3.size <= 3 * LIMITS.max_pixels


def decode_mask(data: bytes) -> None:
    """Decode a mask: either ValueError, or a mask of the stated size."""
    if len(data) < SIZE.size:
        return
    height, width = SIZE.unpack_from(data)
    body = data[SIZE.size :]
    rings = np.frombuffer(body[: len(body) // 8 * 8], "<f4")
    for decode in (
        lambda: mask_codecs.decode_rle(body, height, width),
        lambda: mask_codecs.decode_polygons([rings], height, width),
    ):
        try:
            mask_HW = decode()
        except ValueError:
            continue
        assert mask_HW.shape == (height, width)
        assert mask_HW.dtype == bool
        assert np.array_equal(
            mask_codecs.decode_rle(masks.encode_rle(mask_HW), height, width), mask_HW
        )


def read_cache_entry(data: bytes) -> None:
    """Unpack an entry, as it is and with a valid checksum: either None, or a read-only array."""
    sealed = data[:4] + xxhash.xxh3_128_digest(data[20:]) + data[20:]
    for stored in (data, sealed):
        found = entry.unpack(NAME, stored)
        if found is not None:
            assert not found.array.flags.writeable
            assert isinstance(found.geometry, Geometry)


def read_config(data: bytes) -> None:
    """Read config.json: either a config, or CheckpointError."""
    try:
        SamClipConfig.from_json(data)
    except CheckpointError:
        return


def load_checkpoint(data: bytes) -> None:
    """Load a checkpoint with arbitrary weights or manifest: either success, or CheckpointError."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / checkpoint.MANIFEST).write_bytes(data)
        with suppress(CheckpointError):
            checkpoint.digest(directory)
        (directory / checkpoint.WEIGHTS).write_bytes(data)
        checkpoint.seal(directory)
        try:
            checkpoint.load_weights(directory, _module)
        except CheckpointError:
            return


def _module() -> "object":
    from torch import nn

    return nn.Linear(2, 2)


def read_body(data: bytes) -> None:
    """Read a JSON body as each kind of request: either a message, or InvalidRequest."""
    for request in REQUESTS:
        try:
            messages.to_message(request, bodies.parse_object(data), form=False)
        except InvalidRequest:
            continue


def read_form(data: bytes) -> None:
    """Read a form as each kind of request: either a message, or InvalidRequest."""
    try:
        fields = bodies.parse_form(deque([data]), "multipart/form-data; boundary=x", 100)
    except InvalidRequest:
        return
    for request in REQUESTS:
        with suppress(InvalidRequest):
            messages.to_message(request, fields, form=True)


def check_request(data: bytes) -> None:
    """Check a SegmentRequest as the service does before it decodes the image."""
    try:
        request = pb.SegmentRequest.FromString(data)
    except DecodeError:
        return
    try:
        limits.check_encoding(request)
        limits.check_prompts(request.prompts, 16)
        wire.image_source(request.image, LIMITS.max_bytes)
        for prompt in request.prompts:
            made = wire.to_text_prompt(prompt) if prompt.text else wire.to_placed(prompt)
            made.validate(Geometry(30, 40, 128))
    except InvalidRequest:
        return


def check_objects(data: bytes) -> None:
    """Read the objects of an image: either ValueError, or masks within a small picture."""
    try:
        found = Objects(data, D)
        found.check(LIMITS.max_pixels)
    except ValueError:
        return
    assert len(data) <= MOST_BYTES
    for index in range(len(found.vector_RD)):
        one = found[index]
        rle = wire.to_everything_mask(one.found(), pb.RLE).rle
        assert 0 < rle.height * rle.width <= LIMITS.max_pixels
        assert max(rle.height, rle.width) <= MAX_SIDE
        assert len(rle.counts) <= 5 * (one.side + 1) * rle.width + 10  # a run per cell and column


def read_timeout(data: bytes) -> None:
    """Read a deadline from a header."""
    try:
        found = Priority.read({TIMEOUT: data.decode("latin-1")}, most_s=60)
    except InvalidRequest:
        return
    assert 0 <= (found.time_left() or 0) <= 60


def read_shard(data: bytes) -> None:
    """Read a shard: images within it, and problems; never an error."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data)
        file.flush()
        for item in items({"kind": "shard", "path": file.name, "id": "s"}):
            assert item.problem or len(item.encoded or b"") <= 2**20 + 200 * len(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        decode_image,
        decode_mask,
        read_cache_entry,
        read_config,
        load_checkpoint,
        read_body,
        read_form,
        check_request,
        check_objects,
        read_timeout,
        read_shard,
    )
}


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Return valid inputs of a target."""
    picture = np.random.default_rng(0).integers(0, 255, (12, 9, 3), np.uint8)
    mask_HW = picture[:, :, 0] > 128
    size = SIZE.pack(*mask_HW.shape)
    whole = entry.Entry.of(np.ones((3, 2, 2), np.float32), Geometry(30, 40, 128))
    point = pb.Prompt(points=[pb.Point(x=1, y=2)], box=pb.Box(x_max=9, y_max=9))
    logits = pb.Prompt(mask_input=wire.to_tensor(np.zeros((4, 4), np.float32)))
    text = pb.Prompt(text="a cat")
    rough = pb.Prompt(
        mask=pb.CocoRle(height=30, width=40, counts=masks.encode_rle(np.eye(30, 40) > 0))
    )
    prompts = [point, logits, text, rough]
    segment = pb.SegmentRequest(image=pb.Image(encoded=png()), prompts=prompts)
    bundled = checkpoint.resolve("edge")
    return {
        "decode_image": tuple(
            cv2.imencode(kind, picture)[1].tobytes() for kind in (".png", ".jpg", ".webp")
        ),
        "decode_mask": (
            size + masks.encode_rle(mask_HW),
            size + b"".join(ring.tobytes() for ring in mask_codecs.encode_polygons(mask_HW)),
        ),
        "read_cache_entry": (entry.pack(NAME, whole),),
        "read_config": ((bundled / checkpoint.CONFIG).read_bytes(),),
        "load_checkpoint": ((bundled / checkpoint.MANIFEST).read_bytes(), _safetensors()),
        "read_body": (
            json.dumps({"image": "aGk=", "labels": ["a"], "prompts": [{"text": "a"}]}).encode(),
            json.dumps(
                {"collection": "c", "items": [{"id": "1", "metadata": {"a": "b"}}]}
            ).encode(),
        ),
        "read_form": (
            b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\nhi\r\n'
            b'--x\r\ncontent-disposition: form-data; name="labels"\r\n\r\na cat\r\n--x--\r\n',
        ),
        "check_request": (segment.SerializeToString(),),
        "check_objects": (with_objects(1).objects, *_objects_of_other_sizes()),
        "read_timeout": (b"250m", b"30S"),
        "read_shard": (_shard(tarfile.PAX_FORMAT), gzip.compress(_shard(tarfile.GNU_FORMAT))),
    }[name]


def _objects_of_other_sizes() -> Iterator[bytes]:
    for kind in ("random", "constant", "checkerboard"):
        for count, side, height, width in ((2, 16, 48, 64), (30, 256, 48, 64), (1, 64, 1, 70_000)):
            geometry = Geometry(height, width, 4 * side)
            yield made_up(count, side, geometry, count * [outline(kind, side, geometry)])


def _shard(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, bufsize=512) as shard:
        for name in ("a.jpg", "é" * 100 + ".png", "a.json"):
            member = tarfile.TarInfo(name)
            member.size = 5
            shard.addfile(member, io.BytesIO(b"image"))
    return file.getvalue()


def _safetensors() -> bytes:
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": place}
        for name, shape, place in (("weight", [2, 2], [0, 16]), ("bias", [2], [16, 24]))
    }
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(24)
