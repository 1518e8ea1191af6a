"""Fields of JSON or of a form to messages, and messages to JSON."""

import base64
import json
import re
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest, UnsupportedImage
from services.request import bodies, messages
from services.request.limits import MAX_ITEMS, most_values
from services.request.routes import ROUTES
from services.request.to_json import to_json
from services.settings import Settings

PHOTO = b"\xff\xd8 a photograph"
ENCODED = base64.b64encode(PHOTO).decode()
IMAGE = pb.Image(encoded=PHOTO)
BOX, BOX_4 = pb.Box(x_min=15, y_min=0, x_max=385, y_max=299), [15, 0, 385, 299]
RLE = pb.Area(rle=pb.CocoRle(height=1, width=2, counts=b"02"))
AREAS = [BOX_4, {"box": BOX_4}, {"rle": {"height": 1, "width": 2, "counts": "02"}}]
PROMPTS = [
    {"points": [[200, 60.5], {"x": 1, "y": 2, "negative": True}]},
    {"box": BOX_4, "text": "🐈"},
]
EXAMPLES = [
    {
        "examples": [
            {"image": ENCODED, "box": BOX_4},
            {
                "image": {"key": "k"},
                "mask": {"height": 1, "width": 2, "counts": "02"},
                "negative": True,
            },
            {"points": {"points": [[200, 60.5]]}},
        ]
    }
]
MOST = most_values(Settings())
REQUESTS = [route.request for routes in ROUTES.values() for route in routes]
Part = tuple[str, str | bytes]
"""A name, and a text or the content of a file."""


def read(kind: type[Message], fields: Any) -> Message:
    return messages.to_message(kind, fields, form=False, most=MOST)


def read_form(kind: type[Message], *parts: Part) -> Message:
    fields: bodies.Fields = {}
    for name, content in parts:
        fields.setdefault(name, []).append(content)
    return messages.to_message(kind, fields, form=True, most=MOST)


@pytest.mark.parametrize(
    ("expected", "fields", "forms"),
    [
        (
            pb.SegmentRequest(
                image=IMAGE,
                prompts=[
                    pb.Prompt(points=[pb.Point(x=200, y=60.5), pb.Point(x=1, y=2, negative=True)]),
                    pb.Prompt(box=BOX, text="🐈"),
                ],
                multimask=True,
                encoding=pb.PNG,
            ),
            {"image": ENCODED, "prompts": PROMPTS, "multimask": True, "encoding": "PNG"},
            [
                [
                    *(("image", PHOTO), ("multimask", "True"), ("encoding", "PNG")),
                    *(("prompts", json.dumps(prompts)) for prompts in each),
                ]
                for each in (PROMPTS, [PROMPTS], [PROMPTS[:1], PROMPTS[1]])
            ],
        ),
        (
            pb.SegmentRequest(
                prompts=[
                    pb.Prompt(
                        examples=[
                            pb.Example(image=IMAGE, box=BOX),
                            pb.Example(image=pb.Image(key="k"), mask=RLE.rle, negative=True),
                            pb.Example(points=pb.Points(points=[pb.Point(x=200, y=60.5)])),
                        ]
                    )
                ]
            ),
            {"prompts": EXAMPLES},
            [[("prompts", json.dumps(EXAMPLES))]],
        ),
        (
            pb.SegmentRequest(image=pb.Image(key="k")),
            {"image": {"key": "k"}, "prompts": None},
            [[("image", "k")]],
        ),
        (
            pb.ClassifyRequest(images=[IMAGE], labels=["a", "b"], top_k=1),
            {"image": {"encoded": ENCODED}, "labels": ["a", "b"], "topK": "1"},
            [[("labels", "a"), ("image", PHOTO), ("labels", "b"), ("top_k", "1")]],
        ),
        (
            pb.ClassifyRequest(images=[IMAGE, pb.Image(key="k"), pb.Image(encoded=b"other")]),
            {"images": [ENCODED, {"key": "k"}, "b3RoZXI="], "image": None},
            [[("images", PHOTO), ("images", "k"), ("images", b"other")]],
        ),
        (
            pb.ClassifyRequest(areas=[pb.Area(box=BOX), pb.Area(box=BOX), RLE]),
            {"areas": AREAS},
            [[("areas", json.dumps(AREAS))], [("areas", json.dumps(area)) for area in AREAS]],
        ),
        (
            pb.SearchRequest(text="cat", filter={"owner": "ann", "a.b": '"'}, offset=3),
            {"text": "cat", "filter": {"owner": "ann", "a.b": '"'}, "offset": 3.0},
            [[("text", "cat"), ("filter", '{"owner": "ann", "a.b": "\\""}'), ("offset", "3")]],
        ),
        (pb.SearchRequest(area=pb.Area(box=BOX)), {"area": BOX_4}, []),
        (
            pb.IndexRequest(
                collection="c",
                items=[pb.IndexItem(id="a", image=IMAGE, metadata={"image": "word"})],
            ),
            {
                "collection": "c",
                "items": [{"id": "a", "image": ENCODED, "metadata": {"image": "word"}}],
            },
            [],
        ),
        (
            pb.IndexRequest(
                items=[pb.IndexItem(id="a", vector=b"hi", objects=b"\xff\xfe")],
                made_by=pb.ModelInfo(digest="d"),
            ),
            {
                "items": [{"id": "a", "vector": "aGk=", "objects": "//4="}],
                "made_by": {"digest": "d"},
            },
            [],
        ),
    ],
)
def test_a_request_may_be_written_in_these_ways(
    expected: Message, fields: dict[str, Any], forms: list[list[Part]]
) -> None:
    assert read(type(expected), fields) == expected
    for parts in forms:
        assert read_form(type(expected), *parts) == expected


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (pb.ClassifyRequest, {"labels": "cat"}, "labels is 'cat': expected a list"),
        (pb.ClassifyRequest, {"labels": ["a", 5]}, r"labels\[1\] is 5: expected a text"),
        (pb.ClassifyRequest, {"top_k": 1.5}, "top_k is 1.5: expected a whole number"),
        (pb.ClassifyRequest, {"top_k": "1_0.0"}, "top_k is '1_0.0': expected a whole number"),
        (pb.SegmentRequest, {"min_score": True}, "min_score is True: expected a number"),
        (pb.SegmentRequest, {"min_score": "0_1"}, "min_score is '0_1': expected a number"),
        (pb.ClassifyRequest, {"topK": [1]}, r"topK is \[1\]: expected a whole number"),
        (pb.ClassifyRequest, {"image": 5}, r"images\[0\] is 5: expected a text of base64"),
        (pb.SegmentRequest, {"image": [5]}, r"image is \[5\]: expected a text of base64"),
        (pb.SegmentRequest, {"prompts": {"text": "cat"}}, "prompts is {.*}: expected a list"),
        (pb.SegmentRequest, {"prompts": ["cat"]}, r"prompts\[0\] is 'cat': expected an object"),
        (pb.SegmentRequest, {"multimask": "yes"}, "multimask is 'yes': expected true or false"),
        (pb.SegmentRequest, {"encoding": "png"}, "encoding is 'png': expected one of RLE, PNG"),
        (pb.SegmentRequest, {"min_score": "x" * 999}, r"min_score is '.{,40}': expected a number"),
        (pb.Prompt, {"box": [1, 2, 3, "x"]}, r"^box.y_max is 'x': expected a number$"),
        (pb.Prompt, {"box": {"x_min": 15}}, r"^box lacks y_min, x_max, y_max: expected \[x_min,"),
        (pb.Prompt, {"box": [1, 2, 3]}, r"a box has 3 .* 4: \[x_min, y_min, x_max, y_max\]"),
        (pb.Prompt, {"points": [[1, 2, 3]]}, r"a point has 3 numbers, expected 2: \[x, y\]"),
        (pb.Prompt, {"points": [200, 60]}, r"points\[0\] is 200: expected \[x, y\]"),
        (pb.Prompt, {"points": [["a", 1]]}, r"points\[0\].x is 'a': expected a number"),
        (pb.Prompt, {"pionts": []}, "unknown field 'pionts'; the fields are points, box,"),
        (pb.ClassifyRequest, {"img": ""}, "unknown field 'img'; the fields are image or images,"),
        (pb.DescribeRequest, {"image": None}, "unknown field 'image'"),
        (pb.ClassifyRequest, {"labels": [None]}, r"labels\[0\] is None: expected a text"),
        (pb.ClassifyRequest, {"image": "é"}, "'encoded' is not base64"),
        (pb.Image, {"encoded": ENCODED, "key": "k"}, "'encoded' and 'key' exclude each other"),
        (pb.SearchRequest, {"filter": {"a": {}}}, "filter is {.*}: expected an object of texts"),
        (pb.SegmentRequest, {"prompts": [5] * 257}, "257 prompts in one request, at most 256"),
        (
            pb.SegmentRequest,
            {"prompts": [{}, {"points": [5] * 300}]},
            r"300 points in prompts\[1\], at most 256: send fewer",
        ),
        (
            pb.SegmentRequest,
            {"prompts": [{"examples": [{}] * 17}]},
            r"17 examples in prompts\[0\], at most 16: send fewer",
        ),
        (pb.ClassifyRequest, {"labels": [5] * 1025}, "1,025 labels in one request, at most 1,024"),
        (
            pb.SearchRequest,
            {"filter": {str(i): "" for i in range(33)}},
            "33 pairs of filter in one request, at most 32",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(
    kind: type[Message], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        read(kind, fields)
    assert "samclip.v1" not in str(refused.value)


@pytest.mark.parametrize("address", ["https://a.org/b", " HTTP://a.org/", "file:///etc/passwd"])
def test_the_address_of_an_image_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest, match="is an address, and images are not fetched: send"):
        read(pb.SegmentRequest, {"image": address})


FILE_NAME = "'image' is the name 'cat.JPG', expected the file itself: .* -F image=@FILE"


@pytest.mark.parametrize(
    ("kind", "parts", "message"),
    [
        (
            pb.SegmentRequest,
            [("colour", "red")],
            "unknown field 'colour'; the fields are image, pr",
        ),
        (pb.SegmentRequest, [("prompts", "{")], "'prompts' of the form is not JSON"),
        (pb.SegmentRequest, [("multimask", "perhaps")], "multimask"),
        (pb.SegmentRequest, [("encoding", b"PNG")], "'encoding' is not an image"),
        (pb.SearchRequest, [("filter", "[1]")], "filter is .*: expected an object"),
        (pb.SearchRequest, [("filter", '"x"')], "filter is .*: expected an object"),
        (pb.ClassifyRequest, [("image", "cat.JPG")], FILE_NAME),
        (pb.SegmentRequest, [("image", "cat.JPG")], FILE_NAME),
        (pb.SegmentRequest, [("image", "https://a.org/b")], "is an address"),
        (pb.ClassifyRequest, [("image", PHOTO), ("image", PHOTO)], "'image' is given 2 times"),
        (pb.SegmentRequest, [("image", PHOTO), ("image", "k")], "'image' is given 2 times"),
    ],
)
def test_a_form_that_does_not_fit_is_refused(
    kind: type[Message], parts: list[Part], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_form(kind, *parts)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (pb.SearchRequest, {"text": "cat", "image": ENCODED}, "'text' and 'image'"),
        (pb.SearchRequest, {"id": "1", "text": "cat"}, "'id' and 'text'"),
        (pb.Example, {"box": BOX_4, "points": {}}, "'box' and 'points'"),
        (pb.ClassifyRequest, {"image": ENCODED, "images": [ENCODED]}, "'image' and 'images'"),
        (pb.ClassifyRequest, {"top_k": 1, "topK": 2}, "'top_k' and 'topK'"),
    ],
)
def test_fields_that_exclude_each_other_are_named(
    kind: type[Message], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"{named} exclude each other"):
        read(kind, fields)
    with pytest.raises(InvalidRequest, match=f"{named} exclude each other"):
        read_form(kind, *((name, str(value)) for name, value in fields.items()))


def test_image_is_the_only_one_of_images() -> None:
    assert messages.is_single(pb.ClassifyRequest, {"image": ENCODED})
    assert not messages.is_single(pb.ClassifyRequest, {"images": []})
    assert not messages.is_single(pb.SegmentRequest, {"image": ENCODED})


@pytest.mark.parametrize(
    ("encoded", "content"),
    [
        *(
            (f"data:image/{kind};base64,{ENCODED}", PHOTO)
            for kind in ("jpeg", "png", "webp", "PNG")
        ),
        *((digits, b"\xff\xef") for digits in ("_-8", "_-8=", "/+8=", "/+8")),
    ],
)
def test_an_image_is_base64_of_either_alphabet_or_a_data_uri(encoded: str, content: bytes) -> None:
    for image in (encoded, {"encoded": encoded}):
        assert read(pb.EmbedRequest, {"image": image}).image.encoded == content


@pytest.mark.parametrize("uri", ["data:image/gif;base64,aGk=", "data:image/png,hi", "data:,hi"])
def test_another_data_uri_says_what_to_send(uri: str) -> None:
    with pytest.raises(UnsupportedImage, match="not a data URI of the form data:image/jpeg;"):
        read(pb.SegmentRequest, {"image": uri})


@pytest.mark.parametrize(
    "encoded", ["a!Gk=", "aG\nk=", "a", "aGk==", "=", "aG=k", "aGk=aGk=", "ａGk"]
)
def test_what_is_not_base64_is_refused(encoded: str) -> None:
    tensor = {"dtype": "float32", "data": encoded}
    for name, value in (
        ("encoded", {"image": encoded}),
        ("data", {"prompts": [{"maskInput": tensor}]}),
    ):
        with pytest.raises(InvalidRequest, match=f"'{name}' is not base64: send letters, digits"):
            read(pb.SegmentRequest, value)


def test_a_mask_is_an_rle_in_json_and_in_a_form() -> None:
    prompts = [{"mask": {"height": 2, "width": 2, "counts": "13"}, "points": [[0, 1]]}]
    form = {"image": [b"file"], "prompts": [json.dumps(prompts)]}
    for message in (
        read(pb.SegmentRequest, {"prompts": prompts}),
        messages.to_message(pb.SegmentRequest, form, form=True),
    ):
        assert message.prompts[0].mask == pb.CocoRle(height=2, width=2, counts=b"13")


def test_replies_show_zeros_and_make_integers_numbers() -> None:
    mask = pb.Mask(area=2**40, rle=pb.CocoRle(height=1, width=2, counts=b"02"))
    values = to_json(pb.SegmentResponse(results=[pb.PromptResult(masks=[mask])]))
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
    tensor = to_json(pb.EmbedResponse(tensors=[pb.Tensor(shape=[2, 3])]))
    assert tensor["cached"] is False
    assert tensor["tensors"] == [{"name": "", "dtype": "", "shape": [2, 3]}]
    inline = to_json(pb.EmbedResponse(tensors=[pb.Tensor(shape=[1], data=b"ab")]))
    assert inline["tensors"][0]["data"] == "YWI="
    hit = to_json(pb.Hit(id="a", metadata={"area": "7"}))
    assert hit == {"id": "a", "score": 0.0, "metadata": {"area": "7"}}


def test_the_largest_request_that_is_allowed_is_read() -> None:
    most = Settings().max_prompts
    prompt = {"points": [{"x": 1.5, "y": 2, "negative": True}] * most, "not_texts": ["a"] * most}
    fields = bodies.parse_object(json.dumps({"prompts": [prompt] * most}).encode())
    assert len(read(pb.SegmentRequest, fields).prompts[-1].points) == most
    item = {"id": "1", "metadata": {f"key {i}": "a" for i in range(200)}}
    fields = bodies.parse_object(
        json.dumps({"collection": "c", "items": [item] * MAX_ITEMS}).encode()
    )
    assert len(read(pb.IndexRequest, fields).items) == MAX_ITEMS


def test_every_repeated_field_of_a_request_has_a_limit() -> None:
    def repeated(message: Any) -> set[str]:
        found = {field.name for field in message.fields if field.is_repeated}
        inner = (f.message_type for f in message.fields if f.message_type is not None)
        return found.union(*map(repeated, inner))

    assert set().union(*(repeated(request.DESCRIPTOR) for request in REQUESTS)) == MOST.keys()


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
        read(pb.SegmentRequest, {"prompts": prompts})
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

    for request in set(REQUESTS):
        for body in bodies_of(request.DESCRIPTOR):
            with suppress(InvalidRequest):
                message = read(request, bodies.parse_object(body.encode()))
                assert not re.search(r": -?(nan|inf)$", str(message), re.MULTILINE), body


@pytest.mark.parametrize("text", ["5", "5.0", "5e0", "-0"])
def test_a_whole_number_may_be_a_text(text: str) -> None:
    for value in (text, float(text)):
        assert read(pb.ClassifyRequest, {"top_k": value}).top_k == float(text)


def test_parameters_of_a_form_may_be_an_object_as_in_json() -> None:
    parts = [("image", PHOTO), ("head", "echo"), ("times", "2"), ("parameters", '{"word": "a"}')]
    asked = read_form(pb.AskRequest, *parts)
    assert dict(asked.parameters) == {"times": "2", "word": "a"}
    for given, message in (("[1]", "parameters is .*: expected an object"), ("{", "is not JSON")):
        with pytest.raises(InvalidRequest, match=message):
            read_form(pb.AskRequest, *parts[:3], ("parameters", given))
    with pytest.raises(InvalidRequest, match="'times' is given twice"):
        read_form(pb.AskRequest, *parts[:3], ("parameters", '{"times": 3}'))
