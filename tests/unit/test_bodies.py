import base64
import json
from typing import Any

import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from samclip_core.errors import ImageTooLarge, InvalidPrompt, InvalidRequest, UnsupportedImage
from samclip_core.geometry import Geometry
from services import bodies
from services.wire import to_prompt

PHOTO = b"\xff\xd8 a photograph"
ENCODED = base64.b64encode(PHOTO).decode()
BOUNDARY = "x"


def request(body: bytes, kind: str, chunk: int = 10) -> Request:
    """A request whose body arrives in small pieces."""
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-type", kind.encode())] if kind else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def form(*parts: tuple[str, bytes, bool]) -> bytes:
    """A multipart body of (name, content, is it a file?)."""
    body = b""
    for name, content, is_file in parts:
        file = '; filename="a.jpg"' if is_file else ""
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


async def read(kind: type[Message], body: bytes, content_type: str) -> Message:
    fields, is_form = await bodies.read(request(body, content_type), 10_000)
    return bodies.to_message(kind, fields, is_form)


async def read_json(kind: type[Message], value: object) -> Message:
    return await read(kind, json.dumps(value).encode(), "application/json; charset=utf-8")


async def read_form(kind: type[Message], *parts: tuple[str, bytes, bool]) -> Message:
    return await read(kind, form(*parts), f"multipart/form-data; boundary={BOUNDARY}")


async def test_a_compressed_body_is_refused_unread() -> None:
    for encoding in (b"gzip", b"identity, gzip", b"br"):
        compressed = request(b"{}", "application/json")
        compressed.scope["headers"].append((b"content-encoding", encoding))
        with pytest.raises(UnsupportedImage, match=f"content-encoding '{encoding.decode()}'"):
            await bodies.read(compressed, 10_000)
    plain = request(b"{}", "application/json")
    plain.scope["headers"].append((b"content-encoding", b"Identity"))
    assert await bodies.read(plain, 10_000) == ({}, False)


async def test_a_map_is_one_json_object_of_a_form() -> None:
    expected = pb.SearchRequest(text="cat", filter={"owner": "ann", "a.b": '"'}, offset=3)
    filter = json.dumps(dict(expected.filter)).encode()
    parts = (("text", b"cat", False), ("filter", filter, False), ("offset", b"3", False))
    assert await read_form(pb.SearchRequest, *parts) == expected
    value = {"text": "cat", "filter": dict(expected.filter), "offset": 3}
    assert await read_json(pb.SearchRequest, value) == expected
    for wrong in (b"[1]", b'"x"', b'{"a": {}}'):
        with pytest.raises(InvalidRequest, match="does not fit the request"):
            await read_form(pb.SearchRequest, ("filter", wrong, False))


@pytest.mark.parametrize("image", [ENCODED, {"encoded": ENCODED}])
async def test_json_image_is_base64_or_a_message(image: object) -> None:
    prompts = [{"points": [{"x": 1.5, "y": 2}]}]
    message = await read_json(pb.SegmentRequest, {"image": image, "prompts": prompts})
    assert message == pb.SegmentRequest(
        image=pb.Image(encoded=PHOTO), prompts=[pb.Prompt(points=[pb.Point(x=1.5, y=2)])]
    )


async def test_json_images_inside_lists() -> None:
    several = await read_json(pb.ClassifyRequest, {"images": [ENCODED, {"key": "k"}]})
    assert several == pb.ClassifyRequest(images=[pb.Image(encoded=PHOTO), pb.Image(key="k")])
    item = {"id": "a", "image": ENCODED, "metadata": {"image": "is only a word here"}}
    index = await read_json(pb.IndexRequest, {"collection": "c", "items": [item]})
    assert index == pb.IndexRequest(
        collection="c",
        items=[
            pb.IndexItem(
                id="a", image=pb.Image(encoded=PHOTO), metadata={"image": "is only a word here"}
            )
        ],
    )


async def test_image_is_the_only_one_of_images() -> None:
    expected = pb.ClassifyRequest(images=[pb.Image(encoded=PHOTO)], labels=["a", "b"], top_k=1)
    one = {"image": ENCODED, "labels": ["a", "b"], "top_k": 1}
    assert await read_json(pb.ClassifyRequest, one) == expected
    parts = (("labels", b"a", False), ("image", PHOTO, True), ("labels", b"b", False))
    assert await read_form(pb.ClassifyRequest, *parts, ("top_k", b"1", False)) == expected
    assert bodies.is_single(pb.ClassifyRequest, one)
    assert not bodies.is_single(pb.ClassifyRequest, {"images": []})
    assert not bodies.is_single(pb.SegmentRequest, one)


async def test_form_values_take_the_types_of_their_fields() -> None:
    box = b'{"box": {"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}}'
    message = await read_form(
        pb.SegmentRequest,
        ("image", b"some-key", False),
        ("prompts", b"[" + box + b"]", False),
        ("prompts", box, False),
        ("multimask", b"True", False),
        ("encoding", b"PNG", False),
    )
    prompt = pb.Prompt(box=pb.Box(x_min=1, y_min=2, x_max=3, y_max=4))
    assert message == pb.SegmentRequest(
        image=pb.Image(key="some-key"), prompts=[prompt, prompt], multimask=True, encoding=pb.PNG
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"label": ["a"]}, "label"),
        ({"labels": "a"}, "labels"),
        ({"labels": [None]}, "labels"),
        ({"images": 3}, "images"),
        ({"top_k": "many"}, "top_k"),
        ([1], "not a JSON object"),
        ({"image": "\ud800"}, "image"),
    ],
)
async def test_json_that_does_not_fit_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await read_json(pb.ClassifyRequest, value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("colour", b"red", False), "unknown field 'colour'; the fields are image, prompts"),
        (("prompts", b"{", False), "'prompts' of the form is not JSON"),
        (("multimask", b"perhaps", False), "multimask"),
        (("encoding", b"PNG", True), "'encoding' is not an image"),
    ],
)
async def test_a_form_that_does_not_fit_is_refused(
    part: tuple[str, bytes, bool], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await read_form(pb.SegmentRequest, part)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"\xff", "application/json"),
        (b"--y\r\nno form", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
    ],
)
async def test_a_broken_body_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest):
        await bodies.read(request(body, kind, chunk=1000), 1_000_000)


@pytest.mark.parametrize("kind", ["", "image/jpeg", "text/plain"])
async def test_another_type_of_body_is_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedImage, match=r"multipart/form-data or application/json"):
        await bodies.read(request(PHOTO, kind), 1000)


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    headers = [(b"content-type", b"application/json")]
    endless = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(ImageTooLarge, match="5,000 bytes"):
        await bodies.read(endless, 5000)


def test_replies_show_zeros_and_make_integers_numbers() -> None:
    mask = pb.Mask(area=2**40, rle=pb.CocoRle(height=1, width=2, counts=b"02"))
    values = bodies.to_json(pb.SegmentResponse(results=[pb.PromptResult(masks=[mask])]))
    assert values["results"][0]["masks"] == [
        {
            "area": 2**40,
            "rle": {"height": 1, "width": 2, "counts": base64.b64encode(b"02").decode()},
            "predicted_iou": 0.0,
            "stability_score": 0.0,
            "label": "",
            "label_score": 0.0,
        }
    ]
    tensor = bodies.to_json(pb.EmbedResponse(tensors=[pb.Tensor(shape=[2, 3])]))
    assert tensor["cached"] is False
    assert tensor["tensors"][0]["shape"] == [2, 3]
    hit = bodies.to_json(pb.Hit(id="a", metadata={"area": "7"}))
    assert hit == {"id": "a", "score": 0.0, "metadata": {"area": "7"}}


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000])
async def test_deep_nesting_is_no_json(nested: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON"):
        bodies._object(nested)
    with pytest.raises(InvalidRequest, match="'filter' of the form is not JSON"):
        bodies.to_message(pb.SearchRequest, {"filter": [nested.decode()]}, form=True)


def test_more_values_than_any_request_needs_are_refused_before_they_are_made() -> None:
    for many in (b"[" + b"0," * 1_000_001, b"[" + b"[]" * 1_000_001, b"[" + b"{}" * 1_000_001):
        with pytest.raises(InvalidRequest, match="more than 1,000,000 values"):
            bodies._object(b'{"labels": ' + many)
    long = base64.b64encode(bytes(3_000_000))
    assert len(bodies._object(b'{"image": "' + long + b'"}')["image"]) == len(long)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
async def test_numbers_that_are_none_reach_no_further_than_the_prompt(number: str) -> None:
    body = f'{{"prompts": [{{"points": [{{"x": {number}, "y": 1}}]}}]}}'.encode()
    try:
        message = await read(pb.SegmentRequest, body, "application/json")
    except InvalidRequest:
        return
    prompt = to_prompt(message.prompts[0])
    with pytest.raises(InvalidPrompt, match="lies outside the image"):
        prompt.validate(Geometry(10, 10, 16))
