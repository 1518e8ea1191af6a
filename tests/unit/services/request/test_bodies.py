import base64
import json
import re
from collections import deque
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from samclip_core.errors import ImageTooLarge, InvalidRequest, UnsupportedImage
from services.request import bodies, messages
from services.request.arrival import Arrivals
from services.request.limits import MAX_FORM_PARTS, MAX_ITEMS, form_parts, most_values
from services.request.routes import ROUTES
from services.settings import Settings

PHOTO = b"\xff\xd8 a photograph"
ENCODED = base64.b64encode(PHOTO).decode()
BOUNDARY = "x"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def request(body: bytes, kind: str, chunk: int = 10) -> Request:
    """Return a request whose body arrives in small pieces."""
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-type", kind.encode())] if kind else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


Part = tuple[str, str | bytes]
"""A name, and a text or the content of a file."""


def form(*parts: Part) -> bytes:
    """Return a multipart body."""
    body = b""
    for name, content in parts:
        file = '; filename="a.jpg"' if isinstance(content, bytes) else ""
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += (
            head.encode() + (content if isinstance(content, bytes) else content.encode()) + b"\r\n"
        )
    return body + f"--{BOUNDARY}--\r\n".encode()


async def read_fields(request: Request, limit: int, most_parts: int = 1000) -> bodies.Fields:
    kind = request.headers.get("content-type", "")
    bodies.is_form(kind)
    async with bodies.whole(request, limit, Arrivals()) as chunks:
        return bodies.parse(chunks, kind, most_parts)


async def read(kind: type[Message], body: bytes, content_type: str) -> Message:
    fields = await read_fields(request(body, content_type), 10_000)
    return messages.to_message(kind, fields, bodies.is_form(content_type))


async def read_json(kind: type[Message], value: object) -> Message:
    return await read(kind, json.dumps(value).encode(), "application/json; charset=utf-8")


async def read_form(kind: type[Message], *parts: Part) -> Message:
    return await read(kind, form(*parts), FORM)


async def test_a_compressed_body_is_refused_unread() -> None:
    for encoding in (b"gzip", b"identity, gzip", b"br"):
        compressed = request(b"{}", "application/json")
        compressed.scope["headers"].append((b"content-encoding", encoding))
        with pytest.raises(UnsupportedImage, match=f"content-encoding '{encoding.decode()}'"):
            await read_fields(compressed, 10_000)
    plain = request(b"{}", "application/json")
    plain.scope["headers"].append((b"content-encoding", b"Identity"))
    assert await read_fields(plain, 10_000) == {}


async def test_a_map_is_one_json_object_of_a_form() -> None:
    expected = pb.SearchRequest(text="cat", filter={"owner": "ann", "a.b": '"'}, offset=3)
    parts = (("text", "cat"), ("filter", json.dumps(dict(expected.filter))), ("offset", "3"))
    assert await read_form(pb.SearchRequest, *parts) == expected
    value = {"text": "cat", "filter": dict(expected.filter), "offset": 3}
    assert await read_json(pb.SearchRequest, value) == expected
    for wrong in ("[1]", '"x"', '{"a": {}}'):
        with pytest.raises(InvalidRequest, match=r"filter is .*: expected an object"):
            await read_form(pb.SearchRequest, ("filter", wrong))


@pytest.mark.parametrize("image", [ENCODED, {"encoded": ENCODED}])
async def test_json_image_is_base64_or_a_message(image: object) -> None:
    prompts = [{"points": [{"x": 1.5, "y": 2}]}]
    message = await read_json(pb.SegmentRequest, {"image": image, "prompts": prompts})
    assert message == pb.SegmentRequest(
        image=pb.Image(encoded=PHOTO), prompts=[pb.Prompt(points=[pb.Point(x=1.5, y=2)])]
    )


async def test_points_and_boxes_may_be_lists_of_numbers() -> None:
    expected = pb.SegmentRequest(
        prompts=[
            pb.Prompt(points=[pb.Point(x=200, y=60.5), pb.Point(x=1, y=2, negative=True)]),
            pb.Prompt(box=pb.Box(x_min=15, y_min=0, x_max=385, y_max=299)),
        ]
    )
    prompts = [
        {"points": [[200, 60.5], {"x": 1, "y": 2, "negative": True}]},
        {"box": [15, 0, 385, 299]},
    ]
    assert await read_json(pb.SegmentRequest, {"prompts": prompts}) == expected
    parts = [("prompts", json.dumps(prompt)) for prompt in prompts]
    assert await read_form(pb.SegmentRequest, *parts) == expected


async def test_an_area_may_be_its_box_and_an_rle_has_ascii_counts() -> None:
    box, rle = pb.Box(x_min=15, y_min=0, x_max=385, y_max=299), pb.CocoRle(height=1, width=2)
    rle.counts = b"02"
    expected = pb.ClassifyRequest(areas=[pb.Area(box=box), pb.Area(box=box), pb.Area(rle=rle)])
    as_json = {"height": 1, "width": 2, "counts": "02"}
    areas = [[15, 0, 385, 299], {"box": [15, 0, 385, 299]}, {"rle": as_json}]
    assert await read_json(pb.ClassifyRequest, {"areas": areas}) == expected
    part = ("areas", json.dumps(areas))
    assert await read_form(pb.ClassifyRequest, part) == expected
    parts = [("areas", json.dumps(area)) for area in areas]
    assert await read_form(pb.ClassifyRequest, *parts) == expected
    (search,) = [await read_json(pb.SearchRequest, {"area": [15, 0, 385, 299]})]
    assert search.area.box == box
    with pytest.raises(InvalidRequest, match="a box has 2 numbers"):
        await read_json(pb.SearchRequest, {"area": [1, 2]})


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (pb.ClassifyRequest, {"labels": "cat"}, "labels is 'cat': expected a list"),
        (pb.ClassifyRequest, {"labels": ["a", 5]}, r"labels\[1\] is 5: expected a text"),
        (pb.ClassifyRequest, {"top_k": 1.5}, "top_k is 1.5: expected a whole number"),
        (pb.ClassifyRequest, {"topK": [1]}, r"topK is \[1\]: expected a whole number"),
        (pb.ClassifyRequest, {"image": 5}, r"images\[0\] is 5: expected a text of base64"),
        (pb.SegmentRequest, {"image": [5]}, r"image is \[5\]: expected a text of base64"),
        (pb.SegmentRequest, {"prompts": {"text": "cat"}}, "prompts is {.*}: expected a list"),
        (pb.SegmentRequest, {"prompts": ["cat"]}, r"prompts\[0\] is 'cat': expected an object"),
        (pb.SegmentRequest, {"multimask": "yes"}, "multimask is 'yes': expected true or false"),
        (pb.SegmentRequest, {"encoding": "png"}, "encoding is 'png': expected one of RLE, PNG"),
        (pb.SegmentRequest, {"min_score": "x" * 999}, r"min_score is '.{,40}': expected a number"),
        (pb.Prompt, {"box": [1, 2, 3, "x"]}, r"^box.y_max is 'x': expected a number$"),
        (pb.Prompt, {"box": [1, 2, 3]}, r"a box has 3 .* 4: \[x_min, y_min, x_max, y_max\]"),
        (pb.Prompt, {"points": [[1, 2, 3]]}, r"a point has 3 numbers, expected 2: \[x, y\]"),
        (pb.Prompt, {"points": [200, 60]}, r"points\[0\] is 200: expected \[x, y\]"),
        (pb.Prompt, {"points": [["a", 1]]}, r"points\[0\].x is 'a': expected a number"),
        (pb.Prompt, {"pionts": []}, "unknown field 'pionts'; the fields are points, box,"),
        (pb.ClassifyRequest, {"img": ""}, "unknown field 'img'; the fields are image or images,"),
        (pb.ClassifyRequest, {"labels": [None]}, r"labels\[0\] is None: expected a text"),
        (pb.ClassifyRequest, {"image": "é"}, "'encoded' is not base64"),
        (pb.ClassifyRequest, [1], "the body is not a JSON object"),
        (pb.Image, {"encoded": ENCODED, "key": "k"}, "'encoded' and 'key' exclude each other"),
    ],
)
async def test_a_value_that_does_not_fit_is_named_with_what_would(
    kind: type[Message], body: object, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        await read_json(kind, body)
    assert "samclip.v1" not in str(refused.value)


async def test_a_form_that_names_a_file_instead_of_sending_it_is_told_how() -> None:
    expected = "'image' is the name 'cat.JPG', expected the file itself: .* -F image=@FILE"
    for kind in (pb.ClassifyRequest, pb.SegmentRequest):
        with pytest.raises(InvalidRequest, match=expected):
            await read_form(kind, ("image", "cat.JPG"))


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
    parts = (("labels", "a"), ("image", PHOTO), ("labels", "b"))
    assert await read_form(pb.ClassifyRequest, *parts, ("top_k", "1")) == expected
    assert messages.is_single(pb.ClassifyRequest, one)
    assert not messages.is_single(pb.ClassifyRequest, {"images": []})
    assert not messages.is_single(pb.SegmentRequest, one)


async def test_form_values_take_the_types_of_their_fields() -> None:
    box = '{"box": {"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}}'
    message = await read_form(
        pb.SegmentRequest,
        ("image", "some-key"),
        ("prompts", f"[{box}]"),
        ("prompts", box),
        ("multimask", "True"),
        ("encoding", "PNG"),
    )
    prompt = pb.Prompt(box=pb.Box(x_min=1, y_min=2, x_max=3, y_max=4))
    assert message == pb.SegmentRequest(
        image=pb.Image(key="some-key"), prompts=[prompt, prompt], multimask=True, encoding=pb.PNG
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("colour", "red"), "unknown field 'colour'; the fields are image, prompts"),
        (("prompts", "{"), "'prompts' of the form is not JSON"),
        (("multimask", "perhaps"), "multimask"),
        (("encoding", b"PNG"), "'encoding' is not an image"),
    ],
)
async def test_a_form_that_does_not_fit_is_refused(part: Part, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await read_form(pb.SegmentRequest, part)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"--y\r\nno form", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
    ],
)
async def test_a_broken_body_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest):
        await read_fields(request(body, kind, chunk=1000), 1_000_000)


@pytest.mark.parametrize("charset", ["punycode", "raw_unicode_escape", "latin-1", "utf-16", "no"])
@pytest.mark.parametrize("kind", [FORM, "application/json"])
async def test_another_charset_than_utf_8_is_refused(kind: str, charset: str) -> None:
    body = form(("text", "cat")) if kind == FORM else b'{"text": "cat"}'
    assert await read(pb.SearchRequest, body, f'{kind}; charset="UTF-8"')
    with pytest.raises(InvalidRequest, match=f"has the charset '{charset}': send UTF-8"):
        await read(pb.SearchRequest, body, f"{kind}; charset={charset}")


async def test_the_charset_of_a_field_is_utf_8() -> None:
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="text"\r\n'
    end = f"\r\n--{BOUNDARY}--\r\n"
    for charset, fits in (("utf-8", True), ("iso-8859-1", False), ("utf-7", False)):
        body = f"{head}content-type: text/plain; charset={charset}\r\n\r\ncat{end}".encode()
        if fits:
            assert await read(pb.SearchRequest, body, FORM) == pb.SearchRequest(text="cat")
        else:
            with pytest.raises(InvalidRequest, match=f"field 'text' has the charset '{charset}'"):
                await read(pb.SearchRequest, body, FORM)


async def test_the_charset_that_a_browser_names_in_a_field() -> None:
    text = ("text", "cat")
    named = await read_form(pb.SearchRequest, ("_charset_", "UTF-8"), text)
    assert named == pb.SearchRequest(text="cat")
    with pytest.raises(InvalidRequest, match="the form has the charset 'windows-1252'"):
        await read_form(pb.SearchRequest, ("_charset_", "windows-1252"), text)


async def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="field 'text' of the form is not UTF-8"):
        await read(pb.SearchRequest, form(("text", "cat")).replace(b"cat", b"caf\xe9"), FORM)
    for encoding in ("latin-1", "utf-16", "utf-32"):
        body = '{"text": "café"}'.encode(encoding)
        with pytest.raises(InvalidRequest, match="the body is not JSON"):
            await read(pb.SearchRequest, body, "application/json")


@pytest.mark.parametrize(
    "value",
    [{"labels": ["\ud800"]}, {"\udfff": 1}, {"image": "\ud83d"}, {"metadata": {"\ud800": "a"}}],
)
async def test_one_half_of_a_surrogate_pair_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="the body has half of a surrogate pair"):
        await read_json(pb.ClassifyRequest, value)
    with pytest.raises(InvalidRequest, match="'prompts' of the form has half of a surrogate"):
        await read_form(pb.SegmentRequest, ("prompts", json.dumps(value)))


async def test_both_halves_of_a_surrogate_pair_are_a_character() -> None:
    assert await read_json(pb.SearchRequest, {"text": "🐈"}) == pb.SearchRequest(text="🐈")


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (pb.SearchRequest, {"text": "cat", "image": ENCODED}, "'text' and 'image'"),
        (pb.SearchRequest, {"id": "1", "text": "cat"}, "'id' and 'text'"),
        (pb.ClassifyRequest, {"image": ENCODED, "images": [ENCODED]}, "'image' and 'images'"),
        (pb.ClassifyRequest, {"top_k": 1, "topK": 2}, "'top_k' and 'topK'"),
    ],
)
async def test_fields_that_exclude_each_other_are_named(
    kind: type[Message], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{named} exclude each other"):
        await read_json(kind, fields)
    with pytest.raises(InvalidRequest, match=f"{named} exclude each other"):
        await read_form(kind, *((name, str(value)) for name, value in fields.items()))


@pytest.mark.parametrize("kind", [pb.ClassifyRequest, pb.SegmentRequest])
async def test_a_field_of_one_value_is_given_once(kind: type[Message]) -> None:
    with pytest.raises(InvalidRequest, match="field 'image' is given 2 times"):
        await read_form(kind, ("image", PHOTO), ("image", PHOTO))
    with pytest.raises(InvalidRequest, match="field 'image' is given 2 times"):
        await read_form(kind, ("image", PHOTO), ("image", "key"))
    twice = f'{{"image": "{ENCODED}", "image": "{ENCODED}"}}'.encode()
    with pytest.raises(InvalidRequest, match="'image' is given more than once"):
        await read(kind, twice, "application/json")


async def test_images_of_a_form_keep_their_order() -> None:
    files = [("images", PHOTO), ("images", "key"), ("images", b"other")]
    message = await read_form(pb.ClassifyRequest, *files)
    assert message == pb.ClassifyRequest(
        images=[pb.Image(encoded=PHOTO), pb.Image(key="key"), pb.Image(encoded=b"other")]
    )


async def test_a_form_holds_as_many_labels_as_a_request_may_have() -> None:
    most = form_parts(Settings())
    labels = [("labels", f"label {i}") for i in range(Settings().max_labels)]
    body = form(*labels, ("image", PHOTO))
    fields = await read_fields(request(body, FORM, 10_000), len(body), most)
    message = messages.to_message(pb.ClassifyRequest, fields, form=True)
    assert len(message.labels) == Settings().max_labels
    with pytest.raises(InvalidRequest, match="more than 1,000 parts"):
        await read_fields(request(body, FORM, 10_000), len(body), 1000)
    assert form_parts(Settings(max_labels=10**9)) == MAX_FORM_PARTS


async def test_a_line_break_after_a_form_may_arrive_later() -> None:
    body = form(("text", "cat"))
    for cut in range(1, len(body) + 1):
        chunks = deque([body[:cut], *[b""] * bodies.JOINED, body[cut:] + b"\r\n"])
        assert bodies.parse_form(chunks, FORM, 9) == {"text": ["cat"]}


@pytest.mark.parametrize("head", [b"", b'; filename="a.jpg"', b'; name=""'])
def test_a_part_without_a_name_is_refused(head: bytes) -> None:
    body = b"--x\r\ncontent-disposition: form-data" + head + b"\r\n\r\na\r\n--x--"
    with pytest.raises(InvalidRequest, match="a part has no name in content-disposition"):
        bodies.parse_form(deque([body]), FORM, 9)


FILE = 'form-data; name="image"; filename'


@pytest.mark.parametrize(
    "disposition",
    [
        f'{FILE}="é.jpg"'.encode(),  # browsers, curl, urllib3 2
        f'{FILE}="é.jpg"'.encode("latin-1"),  # curl on Windows
        f"{FILE}*=utf-8''%C3%A9.jpg".encode(),  # urllib3 1, in older versions of requests
        f"{FILE}=a.jpg; filename*=utf-8''a.jpg".replace('"', "").encode(),  # .NET
        f"{FILE}=é.jpg".encode(),
        f'{FILE}="a\\"b.jpg"'.encode(),  # Go
        f'{FILE}=""'.encode(),
        f'{FILE}="a.jpg"\r\nContent-Length: 3'.encode(),  # RFC 7578: to be ignored
        f'{FILE}="a.jpg"\r\nContent-Length: 99'.encode(),
        f'{FILE}="a.jpg"'.replace("form-data", "attachment").encode(),
    ],
)
def test_a_file_is_one_however_its_client_writes_the_name(disposition: bytes) -> None:
    body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + PHOTO + b"\r\n--x--"
    assert bodies.parse_form(deque([body]), FORM, 9) == {"image": [PHOTO]}


async def test_a_file_that_was_not_chosen_in_a_browser_is_left_out() -> None:
    body = form(("image", b""), ("text", "cat")).replace(b"a.jpg", b"")
    assert await read(pb.SearchRequest, body, FORM) == pb.SearchRequest(text="cat")


def test_errors_about_headers_of_parts_are_plain_sentences() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\na\r\n--x--'
    fields = bodies.parse_form(deque([body]), FORM, 9)
    with pytest.raises(InvalidRequest, match="unknown field '\ufffd'; the fields are"):
        messages.to_message(pb.SearchRequest, fields, form=True)
    with pytest.raises(InvalidRequest, match=r"^the form is broken: Invalid segment header name$"):
        bodies.parse_form(deque([b"--x\r\nX-\xff: 1\r\n"]), FORM, 9)


async def test_a_form_without_its_end_is_broken() -> None:
    with pytest.raises(InvalidRequest, match="the form is broken: Unexpected end"):
        await read(pb.SearchRequest, form(("text", "cat"))[:-8], FORM)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "PNG"])
async def test_an_image_may_be_a_data_uri(kind: str) -> None:
    uri = f"data:image/{kind};base64,{ENCODED}"
    for image in (uri, {"encoded": uri}):
        message = await read_json(pb.SegmentRequest, {"image": image})
        assert message == pb.SegmentRequest(image=pb.Image(encoded=PHOTO))


@pytest.mark.parametrize("uri", ["data:image/gif;base64,aGk=", "data:image/png,hi", "data:,hi"])
async def test_another_data_uri_says_what_to_send(uri: str) -> None:
    with pytest.raises(UnsupportedImage, match="not a data URI of the form data:image/jpeg;"):
        await read_json(pb.SegmentRequest, {"image": uri})


@pytest.mark.parametrize("encoded", ["_-8", "_-8=", "/+8=", "/+8"])
async def test_base64_has_either_alphabet_and_may_be_padded(encoded: str) -> None:
    message = await read_json(pb.SegmentRequest, {"image": encoded})
    assert message == pb.SegmentRequest(image=pb.Image(encoded=b"\xff\xef"))


@pytest.mark.parametrize(
    "encoded", ["a!Gk=", "aG\nk=", "a", "aGk==", "=", "aG=k", "aGk=aGk=", "ａGk"]
)
async def test_what_is_not_base64_is_refused(encoded: str) -> None:
    tensor = {"dtype": "float32", "data": encoded}
    for value in ({"image": encoded}, {"prompts": [{"mask_input": tensor}]}):
        with pytest.raises(InvalidRequest, match="is not base64: send letters, digits"):
            await read_json(pb.SegmentRequest, value)
    with pytest.raises(InvalidRequest, match="'data' is not base64"):
        await read_json(pb.SegmentRequest, {"prompts": [{"maskInput": tensor}]})


@pytest.mark.parametrize("kind", ["", "image/jpeg", "text/plain"])
async def test_another_type_of_body_is_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedImage, match=r"multipart/form-data or application/json"):
        await read_fields(request(PHOTO, kind), 1000)


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    headers = [(b"content-type", b"application/json")]
    endless = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(ImageTooLarge, match="5,000 bytes"):
        await read_fields(endless, 5000)


def test_replies_show_zeros_and_make_integers_numbers() -> None:
    mask = pb.Mask(area=2**40, rle=pb.CocoRle(height=1, width=2, counts=b"02"))
    values = messages.to_json(pb.SegmentResponse(results=[pb.PromptResult(masks=[mask])]))
    assert values["results"][0]["masks"] == [
        {
            "area": 2**40,
            "rle": {"height": 1, "width": 2, "counts": "02"},
            "predicted_iou": 0.0,
            "stability_score": 0.0,
            "label": "",
            "label_score": 0.0,
        }
    ]
    tensor = messages.to_json(pb.EmbedResponse(tensors=[pb.Tensor(shape=[2, 3])]))
    assert tensor["cached"] is False
    assert tensor["tensors"] == [{"name": "", "dtype": "", "shape": [2, 3]}]
    inline = messages.to_json(pb.EmbedResponse(tensors=[pb.Tensor(shape=[1], data=b"ab")]))
    assert inline["tensors"][0]["data"] == "YWI="
    hit = messages.to_json(pb.Hit(id="a", metadata={"area": "7"}))
    assert hit == {"id": "a", "score": 0.0, "metadata": {"area": "7"}}


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000])
async def test_deep_nesting_is_no_json(nested: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON"):
        bodies.parse_object(nested)
    with pytest.raises(InvalidRequest, match="'filter' of the form is not JSON"):
        messages.to_message(pb.SearchRequest, {"filter": [nested.decode()]}, form=True)


def test_more_values_than_any_request_needs_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for many in (b"[" + b"0," * 400_001, b"[" + b"[]" * 400_001, b"[" + b"{}" * 400_001):
        with pytest.raises(InvalidRequest, match="more than 400,000 values"):
            bodies.parse_object(b'{"labels": ' + many)
    many_parts = {"prompts": ["[" + "{}," * 60_000 + "{}]"] * 4}
    monkeypatch.setattr(json, "loads", None)  # not called
    with pytest.raises(InvalidRequest, match="the form has more than 400,000 values"):
        messages.to_message(pb.SegmentRequest, many_parts, form=True)
    monkeypatch.undo()
    long = base64.b64encode(bytes(3_000_000))
    assert len(bodies.parse_object(b'{"image": "' + long + b'"}')["image"]) == len(long)


def test_an_image_that_is_null_is_none_beside_images() -> None:
    fields = {"image": None, "images": ["eA=="], "labels": ["cat"]}
    message = messages.to_message(pb.ClassifyRequest, fields, form=False)
    assert [image.encoded for image in message.images] == [b"x"]
    with pytest.raises(InvalidRequest, match="image"):
        messages.to_message(pb.DescribeRequest, {"image": None}, form=False)


MOST = most_values(Settings())


def test_the_largest_request_that_is_allowed_is_read() -> None:
    most = Settings().max_prompts
    prompt = {"points": [{"x": 1.5, "y": 2, "negative": True}] * most, "not_texts": ["a"] * most}
    body = json.dumps({"prompts": [prompt] * most}).encode()
    fields = bodies.parse_object(body)
    message = messages.to_message(pb.SegmentRequest, fields, form=False, most=MOST)
    assert sum(len(prompt.points) for prompt in message.prompts) == most**2
    item = {"id": "1", "metadata": {f"key {i}": "a" for i in range(200)}}
    body = json.dumps({"collection": "c", "items": [item] * MAX_ITEMS}).encode()
    fields = bodies.parse_object(body)
    message = messages.to_message(pb.IndexRequest, fields, form=False, most=MOST)
    assert len(message.items) == MAX_ITEMS


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (pb.SegmentRequest, {"prompts": [5] * 257}, "257 prompts in one request, at most 256"),
        (
            pb.SegmentRequest,
            {"prompts": [{}, {"points": [5] * 300}]},
            r"300 points in prompts\[1\], at most 256: send fewer",
        ),
        (pb.ClassifyRequest, {"labels": [5] * 1025}, "1,025 labels in one request, at most 1,024"),
        (
            pb.SearchRequest,
            {"filter": {str(i): "" for i in range(33)}},
            "33 pairs of filter in one request, at most 32",
        ),
    ],
)
def test_values_are_counted_before_they_are_read(
    kind: type[Message], body: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        messages.to_message(kind, body, form=False, most=MOST)


def test_every_repeated_field_of_a_request_has_a_limit() -> None:
    def repeated(message: Any) -> set[str]:
        found = {field.name for field in message.fields if field.is_repeated}
        inner = (f.message_type for f in message.fields if f.message_type is not None)
        return found.union(*map(repeated, inner))

    requests = [route.request for routes in ROUTES.values() for route in routes]
    assert set().union(*(repeated(request.DESCRIPTOR) for request in requests)) == MOST.keys()


def test_a_value_that_does_not_fit_is_found_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = 0
    one = messages._one

    def counted(*args: Any) -> Any:
        nonlocal walked
        walked += 1
        return one(*args)

    monkeypatch.setattr(messages, "_one", counted)
    points = [[1, 2]] * 20
    prompts = [{"points": points}] * 9 + [{"points": [*points, [1, "x"]]}]
    with pytest.raises(InvalidRequest, match=r"prompts\[9\].points\[20\].y is 'x'"):
        messages.to_message(pb.SegmentRequest, {"prompts": prompts}, form=False)
    assert walked == 10 + 3 * 201  # prompts, and points with their two coordinates


NUMBERS = ["1e999", "-1e999", "1e39", "2147483648", "-9223372036854775809", "1.5", "9" * 1000]
TEXTS = ['""', '"NaN"', '"Infinity"', '"1e999"', '"\\u0000"', '"é"', f'"{"9" * 5000}"']
LISTS = ["[]", "[[]]", "[{}]", "[null]", "[1e39,0]", '["",""]', "[" * 300 + "]" * 300]
OBJECTS = ["{}", '{"":""}', '{"":1}', '{"a":null}', '{"a":' * 300 + "1" + "}" * 300]
HOSTILE = ["true", "null", *NUMBERS, *TEXTS, *LISTS, *OBJECTS]


@pytest.mark.parametrize("value", HOSTILE)
def test_any_value_of_any_field_is_read_or_refused(value: str) -> None:
    def bodies_of(message: Any) -> list[str]:
        found = []
        for field in message.fields:
            inner = [value, f"[{value}]"]
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                below = bodies_of(field.message_type)
                inner += [f"[{one}]" for one in below] if field.is_repeated else below
            found += [f'{{"{field.json_name}":{one}}}' for one in inner]
        return found

    for request in {route.request for routes in ROUTES.values() for route in routes}:
        for body in bodies_of(request.DESCRIPTOR):
            with suppress(InvalidRequest):
                fields = bodies.parse_object(body.encode())
                message = messages.to_message(request, fields, form=False, most=MOST)
                assert not re.search(r": -?(nan|inf)$", str(message), re.MULTILINE), body


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "9" * 1001])
def test_what_is_no_number_is_no_json(number: str) -> None:
    with pytest.raises(InvalidRequest, match="is no number, or has more than 1,000 digits"):
        bodies.parse_object(f'{{"id": [{number}]}}'.encode())
    assert bodies.parse_object(b'{"id": %s}' % (b"9" * 1000)) == {"id": int("9" * 1000)}


@pytest.mark.parametrize("text", ["5", "5.0", "5e0", "-0"])
def test_a_whole_number_may_be_a_text(text: str) -> None:
    for value in ({"top_k": text}, {"top_k": float(text)}):
        message = messages.to_message(pb.ClassifyRequest, value, form=False)
        assert message.top_k == float(text)


def test_short_chunks_of_a_form_are_parsed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    parse = bodies.PushMultipartParser.parse

    def noted(self: Any, data: bytes) -> Any:
        written.append(data)
        return parse(self, data)

    monkeypatch.setattr(bodies.PushMultipartParser, "parse", noted)
    body = form(("text", "cat" * 100))
    chunks = deque(bytes([one]) for one in body)
    assert bodies.parse_form(chunks, FORM, 9) == {"text": ["cat" * 100]}
    assert b"".join(written) == body
    assert len(written) < len(body) / 10


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"--x\r\na: " + b"b" * 3000, "Maximum segment header length exceeded"),
        (b"--x\r\n" + b"a: b\r\n" * 9, "Maximum segment header count exceeded"),
        (b"\r\n" * 40_000 + b"--x--", "too long headers"),
        (form(("text", "cat")) + b"\r\n" * 40_000, "too long headers"),
        (form(("text", "cat"))[:-4] + b" " * 70_000, "Unexpected bytes after boundary"),
        (form(("text", "\r\n--xa" * 12)), "Unexpected bytes after boundary"),
        (form(*[("text", "cat")] * 12), "more than 10 parts"),
    ],
)
def test_a_form_that_is_slow_to_parse_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        bodies.parse_form(deque([body]), FORM, 10)


def test_the_headers_that_each_part_needs_are_read() -> None:
    head = (
        b'content-type: text/plain; charset=utf-8\r\ncontent-disposition: form-data; name="labels"'
    )
    body = (b"--x\r\n" + head + b"\r\n\r\na\r\n") * 3000 + b"--x--\r\n"
    assert bodies.parse_form(deque([body]), FORM, 3000) == {"labels": ["a"] * 3000}


@pytest.mark.parametrize("boundary", ["----=_Part_1", "a/b", '"a b"'])
@pytest.mark.parametrize("between", [";", "; ", ";\t"])
def test_a_boundary_is_read_with_and_without_quotes(boundary: str, between: str) -> None:
    line = boundary.strip('"')
    head = 'content-disposition: form-data; name="text"'
    body = f"--{line}\r\n{head}\r\n\r\ncat\r\n--{line}--\r\n".encode()
    kind = f"multipart/form-data{between}boundary={boundary}"
    assert bodies.parse_form(deque([body]), kind, 9) == {"text": ["cat"]}


@pytest.mark.parametrize("boundary", ["", '""', "b" * 257])
def test_a_form_without_a_usable_boundary_is_refused(boundary: str) -> None:
    with pytest.raises(InvalidRequest, match="names no boundary of at most 256 characters"):
        bodies.parse_form(deque([b""]), f"multipart/form-data; boundary={boundary}", 9)


@pytest.mark.parametrize("given", [";\tcharset=iso-8859-1", "; charset =\tutf-16", "; CHARSET="])
def test_a_charset_is_found_after_any_space(given: str) -> None:
    with pytest.raises(InvalidRequest, match="send UTF-8"):
        bodies.parse_object(b"{}", f"application/json{given}")
