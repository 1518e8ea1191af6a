"""The parameters of a head of one's own, as a form and a command line give them: texts."""

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from samclip.v1 import samclip_pb2 as pb

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
