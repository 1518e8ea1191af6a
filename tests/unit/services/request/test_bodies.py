"""Bodies to the fields of JSON or of a form; ``test_messages.py`` has the fields to messages."""

import base64
import json
from collections import deque
from typing import Any

import pytest
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from samclip_core.errors import ImageTooLarge, InvalidRequest, UnsupportedImage
from services.request import bodies, messages
from services.request.limits import MAX_FORM_PARTS, form_parts
from services.request.transit import Budget
from services.settings import Settings

PHOTO = b"\xff\xd8 a photograph"
BOUNDARY = "x"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"


def request(body: bytes, kind: str, chunk: int = 10) -> Request:
    """Return a request whose body arrives in small pieces."""
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    headers = [(b"content-type", kind.encode())] if kind else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def form(*parts: tuple[str, str | bytes]) -> bytes:
    """Return a multipart body of names, each with a text or the content of a file."""
    body = b""
    for name, content in parts:
        file = '; filename="a.jpg"' if isinstance(content, bytes) else ""
        head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'
        content = content if isinstance(content, bytes) else content.encode()
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def parsed(body: bytes, kind: str = FORM, most_parts: int = 9) -> bodies.Fields:
    return bodies.parse(deque([body]), kind, most_parts)


async def read(request: Request, limit: int = 10_000) -> bodies.Fields:
    kind = request.headers.get("content-type", "")
    bodies.is_form(kind)
    async with bodies.whole(request, limit, Budget("request bodies", 2**29)) as chunks:
        return bodies.parse(chunks, kind, 1000)


async def test_a_body_is_read_as_its_type_says_and_no_other_is() -> None:
    assert await read(request(b'{"a": [1]}', f"{JSON}; charset=utf-8")) == {"a": [1]}
    assert await read(request(form(("a", "b"), ("a", PHOTO)), FORM)) == {"a": ["b", PHOTO]}
    for kind in ("", "image/jpeg", "text/plain"):
        with pytest.raises(UnsupportedImage, match="multipart/form-data or application/json"):
            await read(request(PHOTO, kind))


async def test_a_compressed_body_is_refused_unread() -> None:
    for encoding in (b"gzip", b"identity, gzip", b"br"):
        compressed = request(b"{}", JSON)
        compressed.scope["headers"].append((b"content-encoding", encoding))
        with pytest.raises(UnsupportedImage, match=f"content-encoding '{encoding.decode()}'"):
            await read(compressed)
    plain = request(b"{}", JSON)
    plain.scope["headers"].append((b"content-encoding", b"Identity"))
    assert await read(plain) == {}


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    endless = Request(request(b"", JSON).scope, receive)
    with pytest.raises(ImageTooLarge, match="5,000 bytes"):
        await read(endless, 5000)


TWICE = b'{"image": "a", "image": "b"}'
UTF_8 = "the body is not JSON in UTF-8"
NAMELESS = "a part has no name in content-disposition"
NOT_A_NUMBER = "is no number, or has more than 1,000 digits"
LONE_SURROGATE = "the body has half of a surrogate pair"
NO_BOUNDARY = "names no boundary of at most 256 characters"


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{", JSON, "the body is not JSON"),
        (b"[1]", JSON, "the body is not a JSON object"),
        (TWICE, JSON, "'image' is given more than once: send it once"),
        *(('{"text": "café"}'.encode(code), JSON, UTF_8) for code in ("latin-1", "utf-16")),
        ('{"text": "café"}'.encode("utf-32-be"), JSON, "the body is not JSON"),
        *((each * 100_000, JSON, "the body is not JSON") for each in (b"[", b'{"a":')),
        *(
            (b'{"a": [%s]}' % n.encode(), JSON, NOT_A_NUMBER)
            for n in ("NaN", "-Infinity", "9" * 1001)
        ),
        (b'{"labels": ["\\ud800"]}', JSON, LONE_SURROGATE),
        (b'{"\\udfff": 1}', JSON, LONE_SURROGATE),
        (b'{"a": {"\\uD83D": ""}}', JSON, LONE_SURROGATE),
        (b"--y\r\nno form", FORM, "the form is broken"),
        *((b"", f"multipart/form-data{more}", NO_BOUNDARY) for more in ("", "; boundary=")),
        (b"", 'multipart/form-data; boundary=""', NO_BOUNDARY),
        (b"", f"multipart/form-data; boundary={'b' * 257}", NO_BOUNDARY),
        (form(("text", "cat"))[:-8], FORM, "the form is broken: Unexpected end"),
        (form(("text", "cat")).replace(b"cat", b"\xe9"), FORM, "'text' of the form is not UTF-8"),
        *(
            (form(("a", "b")).replace(b'; name="a"', head), FORM, NAMELESS)
            for head in (b"", b'; filename="a.jpg"', b'; name=""')
        ),
        (b"--x\r\nX-\xff: 1\r\n", FORM, "the form is broken: Invalid segment header name"),
        (b"--x\r\na: " + b"b" * 3000, FORM, "Maximum segment header length exceeded"),
        (b"--x\r\n" + b"a: b\r\n" * 9, FORM, "Maximum segment header count exceeded"),
        (b"\r\n" * 40_000 + b"--x--", FORM, "too long headers"),
        (form(("text", "cat")) + b"\r\n" * 40_000, FORM, "too long headers"),
        (form(("text", "cat"))[:-4] + b" " * 70_000, FORM, "Unexpected bytes after boundary"),
        (form(("text", "\r\n--xa" * 12)), FORM, "Unexpected bytes after boundary"),
        (form(*[("text", "cat")] * 12), FORM, "more than 9 parts"),
    ],
)
def test_a_broken_body_is_refused(body: bytes, kind: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parsed(body, kind)


def test_what_is_just_no_broken_body_is_read() -> None:
    assert parsed(b'{"text": "\\ud83d\\udc08"}', JSON) == {"text": "🐈"}
    assert parsed(b'{"id": %s}' % (b"9" * 1000), JSON) == {"id": int("9" * 1000)}
    named = form(("_charset_", "UTF-8"), ("text", "cat"))
    assert parsed(named, f'{FORM}; charset="utf-8"') == {"text": ["cat"]}
    head = (
        b'content-type: text/plain; charset=utf-8\r\ncontent-disposition: form-data; name="labels"'
    )
    body = (b"--x\r\n" + head + b"\r\n\r\na\r\n") * 3000 + b"--x--\r\n"
    assert parsed(body, most_parts=3000) == {"labels": ["a"] * 3000}


CAT = form(("text", "cat"))
BROWSERS = form(("_charset_", "windows-1252"), ("text", "cat"))
CHARSETS = ("punycode", "raw_unicode_escape", "latin-1", "utf-16", "no")


@pytest.mark.parametrize(
    ("body", "kind", "charset"),
    [
        *((b"{}", f"{JSON}; charset={charset}", charset) for charset in CHARSETS),
        *((CAT, f"{FORM}; charset={charset}", charset) for charset in CHARSETS),
        (b"{}", f"{JSON};\tcharset=iso-8859-1", "iso-8859-1"),
        (b"{}", f"{JSON}; charset =\tutf-16", "utf-16"),
        (b"{}", f"{JSON}; CHARSET=", ""),
        (CAT.replace(b"\r\n\r\n", b"\r\ncontent-type: a/b; charset=utf-7\r\n\r\n"), FORM, "utf-7"),
        (BROWSERS, FORM, "windows-1252"),
    ],
)
def test_another_charset_than_utf_8_is_refused(body: bytes, kind: str, charset: str) -> None:
    with pytest.raises(InvalidRequest, match=f"has the charset '{charset}': send UTF-8"):
        parsed(body, kind)


def test_a_form_holds_as_many_labels_as_a_request_may_have() -> None:
    most = form_parts(Settings())
    labels = [("labels", f"label {i}") for i in range(Settings().max_labels)]
    body = form(*labels, ("image", PHOTO))
    fields = parsed(body, FORM, most)
    message = messages.to_message(pb.ClassifyRequest, fields, form=True)
    assert len(message.labels) == Settings().max_labels
    with pytest.raises(InvalidRequest, match="more than 1,000 parts"):
        parsed(body, FORM, 1000)
    assert form_parts(Settings(max_labels=10**9)) == MAX_FORM_PARTS


def test_a_line_break_after_a_form_may_arrive_later() -> None:
    body = form(("text", "cat"))
    for cut in range(1, len(body) + 1):
        chunks = deque([body[:cut], *[b""] * bodies.JOINED, body[cut:] + b"\r\n"])
        assert bodies.parse_form(chunks, FORM, 9) == {"text": ["cat"]}


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
    assert parsed(body) == {"image": [PHOTO]}


def test_a_file_that_was_not_chosen_in_a_browser_is_left_out() -> None:
    body = form(("image", b""), ("text", "cat"))
    assert parsed(body.replace(b"a.jpg", b"")) == {"text": ["cat"]}


def test_json_that_a_client_names_as_a_file_is_a_text() -> None:
    head = b'Content-Disposition: form-data; name="prompts"; filename="blob"\r\n'
    part = head + b'Content-Type: application/json\r\n\r\n[{"text": "cat"}]'
    fields = parsed(b"--x\r\n" + part + b"\r\n--x--")
    (prompt,) = messages.to_message(pb.SegmentRequest, fields, form=True).prompts
    assert prompt.text == "cat"


def test_a_name_that_is_not_utf_8_is_an_unknown_field() -> None:
    fields = parsed(form(("text", "cat")).replace(b'"text"', b'"\xff"'))
    with pytest.raises(InvalidRequest, match="unknown field '\ufffd'; the fields are"):
        messages.to_message(pb.SearchRequest, fields, form=True)


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


@pytest.mark.parametrize("boundary", ["----=_Part_1", "a/b", '"a b"'])
@pytest.mark.parametrize("between", [";", "; ", ";\t"])
def test_a_boundary_is_read_with_and_without_quotes(boundary: str, between: str) -> None:
    line = boundary.strip('"')
    head = 'content-disposition: form-data; name="text"'
    body = f"--{line}\r\n{head}\r\n\r\ncat\r\n--{line}--\r\n".encode()
    kind = f"multipart/form-data{between}boundary={boundary}"
    assert bodies.parse_form(deque([body]), kind, 9) == {"text": ["cat"]}
