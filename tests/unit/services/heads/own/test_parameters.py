"""The parameters of a head of one's own, as a form and a command line give them: texts."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, Field
from samclip.v1 import samclip_pb2 as pb

from samclip_core import Head
from samclip_core.errors import InvalidRequest
from services.heads.own import parameters
from services.heads.own.parameters import Parameters
from services.request import messages
from tests.own_heads import Colour, Echo


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", "0.5", pytest.approx(0.5)),
        ("colour", '{"red": 7}', Colour(red=7)),
        ("words", "a", ["a"]),
        ("words", '["[a"]', ["[a"]),
        ("sizes", "[]", []),
        ("sizes", ["1", "2"], [1, 2]),
        ("note", '["a"]', '["a"]'),
    ],
)
def test_a_text_stands_for_what_the_schema_says(name: str, text: Any, value: Any) -> None:
    sent = Struct()
    sent.update({"sides": "3", name: text})
    assert getattr(Parameters(Echo()).read(sent), name) == value


def test_a_form_may_have_several_parameters() -> None:
    form = {"image": [b"a"], "sides": ["3"], "words": ["a", "b"], "encoding": ["PNG"]}
    sent = messages.to_message(pb.AskRequest, form, form=True)
    assert Parameters(Echo()).read(sent.parameters) == Echo.Parameters(sides=3, words=["a", "b"])


DEEP = "[" * 40 + "]" * 40


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"parameters": {"a": 1}, "a": 2}', "'a' is given twice"),
        ('{"parameters": [1], "a": 2}', "expected an object"),
        (f'{{"a": {2**53 + 1}}}', "whole ones up to"),
        (f'{{"a": 1{"0" * 900}}}', "whole ones up to"),
        (f'{{"a": {DEEP}}}', "expected an object of"),
    ],
)
def test_json_that_a_message_would_change_is_refused(body: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        messages.to_message(pb.AskRequest, json.loads(body), form=False)


class Wide(BaseModel):
    at_most: float = math.inf
    counts: list[int] = []


def of(kind: Any) -> Parameters:
    return Parameters(type("Own", (Head,), {"Parameters": kind})())


def test_a_schema_with_an_infinite_default_can_be_listed() -> None:
    listed = MessageToDict(of(Wide).listed)
    assert listed["properties"]["at_most"] == {
        "default": None,
        "title": "At Most",
        "type": "number",
    }
    assert of(Wide).read(Struct()).at_most == math.inf


def test_parameters_are_bounded_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Struct()
    sent.update({"counts": ["a"] * 1000})
    with pytest.raises(InvalidRequest, match="1,000 values of the parameters do not fit"):
        of(Wide).read(sent)
    monkeypatch.setattr(parameters, "MAX_BYTES", 100)
    with pytest.raises(InvalidRequest, match="at most 100"):
        of(Wide).read(sent)


class Node(BaseModel):
    share: float = 0.0
    children: list["Node"] = []


def test_parameters_may_hold_others_of_their_class() -> None:
    sent = Struct()
    sent.update({"share": "0.5", "children": [{"children": [{"share": 0.25}]}]})
    assert of(Node).read(sent).children[0].children == [Node(share=0.25)]
    sent.update({"children": [{"children": [{"share": "nan"}]}]})
    with pytest.raises(InvalidRequest, match=r"children\.0\.children\.0\.share is not finite"):
        of(Node).read(sent)


class Lazy(BaseModel):
    counts: Iterable[float] = ()


def test_numbers_that_are_read_later_cannot_be_checked() -> None:
    sent = Struct()
    sent.update({"counts": ["nan"]})
    with pytest.raises(TypeError, match="counts is an Iterable"):
        of(Lazy).read(sent)


def test_an_alias_is_no_field_of_every_request() -> None:
    class Hidden(BaseModel):
        picture: str = Field("", alias="image")

    with pytest.raises(TypeError, match="the alias 'image'"):
        of(Hidden)
