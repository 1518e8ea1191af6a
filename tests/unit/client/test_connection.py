"""Addresses, errors, deadlines, keys and TLS."""

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
import samclip

from tests.fake_server import FakeService
from tests.http_server import Handler, serving
from tests.unit.client.conftest import Server


@pytest.fixture
def unanswered() -> Iterator[dict[str, str]]:
    """Yield addresses of what is no service, by what it does."""

    def close_each() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    with serving(Handler) as site, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=close_each)
        thread.start()
        closing = f"127.0.0.1:{listener.getsockname()[1]}"
        yield {"web": site.removeprefix("http://"), "closes": closing, "nothing": "127.0.0.1:1"}
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "nothing",
            r"no service answers at \S+ \(Connection refused\)\. Start one \(samclip serve\)",
        ),
        ("web", "a web server answers at this address: name the service's gRPC port"),
        ("closes", "the connection was closed: if the service requires TLS"),
        ("TLS", "the service answers without TLS: connect without it"),
    ],
)
async def test_a_failed_connection_is_explained(
    server: Server,
    unanswered: dict[str, str],
    what: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samclip.transport._OPTIONS", [])  # does not ask again for seconds
    address = unanswered.get(what, server[1])
    with samclip.Client(address, tls=what == "TLS") as client:
        with pytest.raises(samclip.Unavailable, match=message) as caught:
            client.describe()
        assert address in str(caught.value)
        assert str(caught.value).endswith("(UNAVAILABLE)")  # no id: nothing has been asked
    async with samclip.AsyncClient(address, tls=what == "TLS") as twin:
        with pytest.raises(samclip.Unavailable, match=message):
            await twin.describe()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, samclip.InvalidArgument),
        (grpc.StatusCode.UNAUTHENTICATED, samclip.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, samclip.PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, samclip.Overloaded),
        (grpc.StatusCode.INTERNAL, samclip.InternalError),
        (grpc.StatusCode.DATA_LOSS, samclip.InternalError),
    ],
)
def test_errors(
    service: FakeService,
    client: samclip.Client,
    code: grpc.StatusCode,
    error: type[samclip.ServiceError],
) -> None:
    service.refusal = (code, "what happened", ())
    with pytest.raises(error) as caught:
        client.embed_text(["a"])
    assert (caught.value.code, caught.value.message) == (code, "what happened")
    sent = service.calls[-1][1]["x-request-id"]
    assert caught.value.request_id == sent
    assert str(caught.value) == f"what happened ({code.name}, request {sent})"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    service.refusal = (code, "what happened", (("x-request-id", "the-door's"),))
    with pytest.raises(error) as caught:
        client.embed_text(["a"])
    assert caught.value.request_id == "the-door's"


def test_a_web_server_at_the_address_is_named_in_plain_words(
    service: FakeService, client: samclip.Client
) -> None:
    grpcs = "Received http2 header with status: 404"
    service.refusal = (grpc.StatusCode.UNIMPLEMENTED, grpcs, ())
    with pytest.raises(samclip.ServiceError, match="a web server answers at this address"):
        client.embed_text(["a"])


def test_a_service_that_is_away_for_a_moment_is_asked_again(
    service: FakeService, client: samclip.Client
) -> None:
    service.refusal = (grpc.StatusCode.UNAVAILABLE, "restarting", ())
    with pytest.raises(samclip.Unavailable):
        client.embed_text(["a"])
    assert len(service.calls) == 5


def test_the_deadline_holds_for_the_question(server: Server) -> None:
    service, address = server
    service.release.clear()
    with (
        samclip.Client(address, timeout=0.2) as client,
        pytest.raises(samclip.DeadlineExceeded, match="no answer in time: allow more"),
    ):
        client.embed_text(["a"])


def test_large_messages_pass(service: FakeService, client: samclip.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    photo = client.image(noise)
    assert len(photo.encoded) > 4 * 2**20  # gRPC's default limit
    assert photo.everything()[0].area == 1500 * 750
    assert service.uploads == [photo.key]


def test_credentials_are_read_at_once(tmp_path: Path) -> None:
    for names in ({"ca": tmp_path / "none"}, {"cert": tmp_path / "none"}):
        with pytest.raises(OSError, match="none"):
            samclip.credentials(**names)


def test_the_api_key_goes_with_every_call(server: Server) -> None:
    service, address = server
    with samclip.Client(address, api_key="s3cret") as client:
        client.embed_text(["a"])
        client.describe()
    assert [headers["authorization"] for _, headers in service.calls] == ["Bearer s3cret"] * 2
    assert "s3cret" not in repr(client)
