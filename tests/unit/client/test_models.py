"""The models of a service: which there are, and which one a request names."""

from collections.abc import Callable
from typing import Any

import pytest
import samclip
from samclip.v1 import samclip_pb2 as pb

from tests.fake_server import FakeService
from tests.unit.client.conftest import Server, png

EXAMPLE = samclip.Example(png(), box=(0, 0, 4, 4))
QUESTIONS: dict[str, Callable[[samclip.Client], Any]] = {
    "Classify": lambda client: client.image(png()).classify(["cat"]),
    "Segment": lambda client: client.image(png()).segment((5, 6)),
    "SegmentEverything": lambda client: list(client.image(png()).stream_everything()),
    "SegmentText": lambda client: client.image(png()).semantic(["cat"]),
    "Explain": lambda client: client.image(png()).explain("cat"),
    "Ask": lambda client: client.image(png()).ask("echo"),
    "Embed": lambda client: client.image(png()).embed(),
    "EmbedText": lambda client: client.embed_text(["cat"]),
    "Index": lambda client: client.index("pets", {"b": png()}),
    "Search": lambda client: client.search("pets", text="cat"),
    "ListItems": lambda client: client.list_items("pets"),
    "Describe": lambda client: client.describe("pets"),
    "Delete": lambda client: client.delete("pets", ["a"]),
    "PutConcept": lambda client: client.add_concept("mug", EXAMPLE),
    "ListConcepts": lambda client: client.concepts(),
}


@pytest.fixture
def named(client: samclip.Client) -> samclip.Client:
    client.index("pets", {"a": png()})
    return client.using("mobile")


def models(service: FakeService) -> list[str]:
    """Return the names of models in the requests since the last call."""
    found = [getattr(request, "model", None) for request, _ in service.calls]
    service.calls.clear()
    return [each.name if isinstance(each, pb.ModelInfo) else each for each in found]


def test_the_questions_are_all_that_can_name_a_model() -> None:
    requests = pb.DESCRIPTOR.message_types_by_name.items()
    takes = {name for name, of in requests if "model" in of.fields_by_name}
    of_browser = {"GetDecoderRequest"}  # which decodes by itself
    assert {name for name in takes if name.endswith("Request")} - of_browser == {
        f"{q}Request" for q in QUESTIONS
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_request_names_the_model_that_was_chosen(
    service: FakeService, client: samclip.Client, named: samclip.Client, question: str
) -> None:
    ask = QUESTIONS[question]
    models(service)
    for asked, name in ((named, "mobile"), (client, ""), (named.using(""), "")):
        ask(asked)
        assert set(models(service)) == {name}


def test_a_client_of_another_model_shares_the_connection(
    service: FakeService, server: Server
) -> None:
    with samclip.Client(server[1], api_key="s3cret", model="edge") as client:
        with client.using("mobile") as mobile:
            mobile.embed_text(["a"])
            assert (mobile.model is not None, client.model) == (True, None)
        client.embed_text(["a"])  # the connection is the first client's
        mobile.embed_text(["a"])
        assert {headers["authorization"] for _, headers in service.calls} == {"Bearer s3cret"}
        assert models(service) == ["mobile", "edge", "mobile"]
        assert repr(client).endswith(", model='edge', fake d1935)")
    with pytest.raises(ValueError, match="closed"):
        mobile.embed_text(["a"])


def test_a_photograph_is_asked_by_the_client_that_it_is_given_to(
    service: FakeService, client: samclip.Client, named: samclip.Client
) -> None:
    photo = client.image(png(7))
    photo.segment((5, 6))
    other = named.image(photo)
    models(service)
    other.segment((5, 6))
    photo.segment((5, 6))
    assert models(service) == ["mobile", ""]
    assert (other.key, client.image(photo)) == (photo.key, photo)
    assert service.uploads.count(photo.key) == 1  # the fake keeps files for all models


def test_a_model_that_lacks_the_photograph_is_sent_it(
    service: FakeService, client: samclip.Client
) -> None:
    photo = client.image(png(7))
    photo.segment((5, 6))
    service.files.clear()  # as those of another model
    client.using("mobile").image(photo).segment((5, 6))
    assert service.uploads == [photo.key, photo.key]
    assert models(service)[-2:] == ["mobile", "mobile"]


async def test_the_asynchronous_client_names_it_too(service: FakeService, server: Server) -> None:
    async with samclip.AsyncClient(server[1], model="edge") as client:
        photo = client.image(png())
        await photo.segment((5, 6))
        await client.using("mobile").image(photo).segment((5, 6))
        listed = await client.models()
    assert models(service)[-3:] == ["edge", "mobile", None]
    assert listed[1] == samclip.ServedModel(
        "clip", "c11b", "radio", False, "idle", 0, 0.0, without_masks=True
    )


def test_models_are_listed(client: samclip.Client) -> None:
    listed = client.models()
    assert [(each.name, each.default, each.alias_of) for each in listed] == [
        ("fake", True, ""),
        ("clip", False, ""),
        ("today", False, "fake"),
    ]


def test_vectors_keep_the_model_that_made_them(service: FakeService) -> None:
    made = pb.IndexRequest(made_by=pb.ModelInfo(digest="d"))
    samclip.wire.name_model(made, "mobile")
    assert not made.model


@pytest.mark.parametrize("name", [None, 3, b"edge"])
def test_a_name_that_is_no_text_is_refused_at_once(server: Server, name: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a name of client\.models"):
        samclip.Client(server[1], model=name)
