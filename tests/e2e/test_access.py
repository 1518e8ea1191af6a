"""Keys, scopes, limits, tenants and TLS of the real service, and its complete stop by Ctrl-C."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
import samclip
from samclip.cli import main
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from services.front_door import keys
from tests import tls
from tests.checkout import ROOT, sources
from tests.e2e import conftest
from tests.e2e.test_sessions import CAT, Session

pytestmark = pytest.mark.e2e

SCOPES = {"ann": ("read", "index"), "bob": tuple(keys.SCOPES)}
SECRETS = {name: f"the secret of {name}" for name in ("ann", "bob", "cat", "dan", "eve")}
LIMITS = {"cat": {"inflight": 1}, "dan": {"inflight": 1, "rate": 2}}
KEYS = [
    keys.Key(keys.digest(secret), name, SCOPES.get(name, ("read",)), name, **LIMITS.get(name, {}))
    for name, secret in SECRETS.items()
]
HOLD = """
import sys, threading, samclip
address, ca, key, photo = sys.argv[1:]
client = samclip.Client(address, api_key=key, tls=samclip.credentials(ca=ca))
with client.image(photo).clicks() as session:
    session.click(230, 120)
    print("open", flush=True)
    threading.Event().wait()
"""


class Guarded(NamedTuple):
    service: conftest.Service
    ca: Path
    keys: Path

    @property
    def address(self) -> str:
        return f"localhost:{self.service.grpc_port}"

    @property
    def trusted(self) -> grpc.ChannelCredentials:
        return samclip.credentials(ca=self.ca)

    def client(self, name: str) -> samclip.Client:
        key = SECRETS.get(name, name)
        return samclip.Client(self.address, api_key=key, tls=self.trusted, timeout=300)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    ca = tls.certificate(directory, "ca")
    certificate = tls.certificate(directory, "localhost", ca)
    file = directory / "keys"
    keys.write(file, KEYS)
    running = conftest.start(
        directory, checkpoint_name, API_KEYS_FILE=file, TLS_CERT_FILE=certificate, HOST="0.0.0.0"
    )
    yield Guarded(running, ca, file)
    running.stop()


def test_who_has_no_key_learns_nothing(guarded: Guarded, photo: bytes) -> None:
    with guarded.client("a made-up key") as nobody, pytest.raises(samclip.Unauthenticated):
        nobody.image(photo).classify(["a cat"])
    context = ssl.create_default_context(cafile=guarded.ca)
    url = f"https://localhost:{guarded.service.http_port}"
    with httpx.Client(base_url=url, verify=context, timeout=60) as http:
        assert http.get("/readyz").json()["ready"] is True
        for path in ("/metrics", "/index", "/backbone/healthz"):
            assert http.get(path).status_code == 401
        assert http.get("/v2/health/live").status_code == 401
        http.headers["authorization"] = f"Bearer {SECRETS['ann']}"
        lines = http.get("/metrics").text.splitlines()
        (end,) = (line for line in lines if line.startswith("samclip_certificate_expiry"))
        assert float(end.split()[1]) == tls.end(guarded.ca.with_name("localhost.pem"))
        reply = http.post("/delete", json={"collection": "pets", "all": True})
        assert (reply.status_code, reply.json()["title"]) == (403, "permission denied")


@pytest.mark.skipif(shutil.which("wget") is None, reason="no wget: install it")
@pytest.mark.parametrize(("certificate", "content"), [("a file", True), ("", False)])
def test_the_containers_health_check_speaks_tls_where_the_service_does(
    guarded: Guarded, certificate: str, content: bool
) -> None:
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", "")
    text = text.replace(":8000/", f":{guarded.service.http_port}/")
    command = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", text, re.MULTILINE)[0])
    environment = {"PATH": os.environ["PATH"], "SAMCLIP_TLS_CERT_FILE": certificate}
    code = subprocess.run(command, env=environment, timeout=60).returncode
    assert (code == 0) == content


def test_each_key_may_do_what_its_scopes_say_and_that_is_written_down(
    guarded: Guarded, photo: bytes
) -> None:
    with guarded.client("ann") as ann:
        assert ann.index("pets", {"chelsea": photo}).indexed == 1
        assert [hit.id for hit in ann.search("pets", text="a cat")] == ["chelsea"]
        with pytest.raises(samclip.PermissionDenied, match="no scope 'admin'"):
            ann.delete("pets", all=True)
        assert ann.describe()[0].count == 1
    written = '"audit": "Index", "key": "ann", "tenant": "ann", "scope": "index"'
    refused = '"audit": "Delete", "key": "ann", "tenant": "ann", "scope": "admin"'
    for _ in range(600):  # Ray forwards the logs of its processes with a delay
        log = guarded.service.log.read_text()
        if written in log and refused in log:
            break
        time.sleep(0.1)
    assert written in log
    assert refused in log
    assert '"refused":"key","method":"GET","path":"/index"' in log  # the request without a key
    assert not any(secret in log for secret in SECRETS.values())


def test_tenants_do_not_see_each_other(guarded: Guarded, photo: bytes) -> None:
    with guarded.client("ann") as ann, guarded.client("bob") as bob:
        key = ann.image(photo).embed() is not None and ann.image(photo).key
        ann.by_key(key).classify(["a cat"])
        for question in (
            lambda image: image.classify(["a cat"]),
            lambda image: image.segment(points=[(200, 60)]),
            lambda image: image.semantic(["a cat"]),
            lambda image: image.embed(),
        ):
            with pytest.raises(samclip.KeyUnknown):
                question(bob.by_key(key))
        assert bob.image(photo).classify(["a cat"])[0].label == "a cat"  # this sends the image
        bob.by_key(key).segment(points=[(200, 60)])
        ann.index("secrets", {"chelsea": photo})
        assert "secrets" not in [found.name for found in bob.describe()]
        for ask in (bob.describe, partial(bob.delete, all=True), bob.list_items):
            with pytest.raises(samclip.NotFound):
                ask("secrets")
        with pytest.raises(samclip.NotFound):
            bob.search("secrets", text="a cat")


def wait_for(client: samclip.Client) -> None:
    """Wait until the service accepts the client's key."""
    for _ in range(600):
        try:
            client.describe()
            return
        except samclip.Unauthenticated:
            time.sleep(0.1)
    pytest.fail("the service does not accept the key after 60 s")


def test_keys_are_replaced_while_it_runs(guarded: Guarded, photo: bytes) -> None:
    fresh = keys.Key(keys.digest("another key of ann"), "ann-2", ("read",), "ann")
    clients = [guarded.client(name) for name in ("another key of ann", "bob", "ann")]
    second, bob, first = clients
    first.describe()
    try:
        keys.write(guarded.keys, [fresh, replace(KEYS[1], name="robert"), *KEYS[2:]])
        wait_for(second)
        assert bob.image(photo).classify(["a cat"])
        with pytest.raises(samclip.Unauthenticated):
            first.describe()
    finally:
        keys.write(guarded.keys, KEYS)
        wait_for(first)
        for client in clients:
            client.close()


def test_the_command_line_comes_in_as_well(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--server", guarded.address, "--ca", str(guarded.ca)]
    assert main(["describe", *server, "--api-key", SECRETS["bob"]]) == 0
    assert main(["describe", *server, "--api-key", "wrong"]) == 1
    assert "no API key, or an unknown one" in capsys.readouterr().err


def test_a_session_holds_a_place_of_its_key_until_its_caller_is_gone(
    guarded: Guarded, photo: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(photo)
    arguments = [guarded.address, str(guarded.ca), SECRETS["cat"], str(image)]
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLD, *arguments],
            env={**os.environ, "PYTHONPATH": sources()},
            stdout=subprocess.PIPE,
            text=True,
        ) as holder,
        grpc.secure_channel(guarded.address, guarded.trusted) as channel,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        prompts = [pb.Prompt(points=[CAT])]
        request = pb.SegmentRequest(image=pb.Image(encoded=photo), prompts=prompts)
        stub, key = rpc.SegmentationServiceStub(channel), [("x-api-key", SECRETS["cat"])]
        segment = partial(stub.Segment, request, timeout=300, metadata=key)
        with pytest.raises(grpc.RpcError, match="limited to 1 requests in flight"):
            segment()
        holder.kill()
        while True:  # the front door notices the end within moments
            try:
                assert segment().results
                break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise


def test_messages_wait_for_the_rate_of_their_key(guarded: Guarded, photo: bytes) -> None:
    """The client opens a session twice, as the service does not know the image: two requests."""
    start = time.monotonic()
    with guarded.client("dan") as client, client.image(photo).clicks() as session:
        first = session.click(CAT.x, CAT.y)  # two messages: it begins an object before
        assert first.area > 0
        for x in (10, 20, 30):
            session.click(x, 10, negative=True)
        assert 2 * (time.monotonic() - start + 2) >= 2 + 2 + 3
        with (
            guarded.client("dan") as other,
            pytest.raises(samclip.Overloaded, match="dan is limited to"),
        ):
            other.image(photo).classify(["a cat"])


def test_the_sessions_of_a_revoked_key_end(guarded: Guarded, photo: bytes) -> None:
    replicas = guarded.service.replicas()
    with (
        grpc.secure_channel(guarded.address, guarded.trusted) as channel,
        guarded.client("eve") as client,
        client.image(photo).clicks() as clicks,
    ):
        assert clicks.click(CAT.x, CAT.y).area > 0
        idle = Session(channel, ("x-api-key", SECRETS["eve"]))
        idle.send(image=pb.Image(encoded=photo))
        keys.write(guarded.keys, KEYS[:-1])
        with pytest.raises(grpc.RpcError, match="'eve' was revoked or changed") as caught:
            next(idle.call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for _ in range(2):  # the client does not open sessions without end
            with pytest.raises(samclip.Unauthenticated):
                clicks.click(CAT.x, CAT.y)
    assert guarded.service.replicas() == replicas


def test_ctrl_c_ends_all_of_a_service_and_nothing_of_another(
    guarded: Guarded, service: conftest.Service
) -> None:
    assert len(guarded.service.processes()) > 8
    assert guarded.service.stop() == 0
    assert not guarded.service.processes()
    assert "Traceback" not in guarded.service.log.read_text()
    last = [line.get("message", "") for line in guarded.service.lines()]
    assert all(line.startswith("Proxy ") for line in last[last.index("stopping …") + 1 :])
    assert httpx.get(f"{service.url}/readyz", timeout=60).json()["ready"] is True
