"""Heads from files outside the project: the document's, one with masks, and one that dies."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import samclip
from PIL import Image
from samclip import cli
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from tests import documents
from tests.checkout import ROOT, sources
from tests.e2e.conftest import Service, start
from tests.e2e.test_readme import environment, folder, run_as_written

__all__ = ["environment", "folder"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DOCUMENT = ROOT / "docs/heads.md"
MORTAL = """
import os
from pydantic import BaseModel
from samclip_core import Head

class Mortal(Head):
    class Parameters(BaseModel):
        die: bool = False

    def answer(self, features, parameters):
        if parameters.die:
            os._exit(1)
        return {"alive": True}
"""
DEATHS = 3
AGAIN_S = 120  # for a replica that is started again on a busy machine


def fit(photos: Path, probe: Path) -> None:
    """Teach a probe two colours."""
    for colour, hue in (("red", 0), ("blue", 170)):
        (photos / colour).mkdir(parents=True)
        for shade in range(6):
            picture = Image.new("HSV", (64, 64), (hue + shade, 220, 120 + 20 * shade))
            picture.convert("RGB").save(photos / colour / f"{shade}.png")
    command = [sys.executable, "-m", "samclip.cli", "probe", "fit", photos, "--out", probe]
    environment = os.environ | {"PYTHONPATH": sources()}
    subprocess.run([*command, "--local", "edge"], check=True, env=environment)


def answered(service: Service, head: str, photo: bytes) -> None:
    """Wait until a head answers, also if its replica is started again.

    In one of a dozen runs, gRPC's core ended a replica at its first call of the backbone
    (memory_quota.cc: "request.max() <= MemoryRequest::max_allowed_size()").
    """
    end = time.monotonic() + AGAIN_S
    while True:
        reply = httpx.post(f"{service.url}/heads/{head}", files={"image": photo}, timeout=60)
        if reply.status_code == 200:
            return
        assert reply.status_code in (500, 502, 503), reply.text
        assert time.monotonic() < end, reply.text
        time.sleep(0.5)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, photo: bytes
) -> Iterator[Service]:
    """Run a service with the document's heads, a probe and two others."""
    (folder / "out").mkdir()
    (folder / "out/cat.jpg").write_bytes(photo)
    made = tmp_path_factory.mktemp("heads")
    fit(made / "photos", made / "colours")
    specs = [f"{ROOT}/tests/own_heads.py:Parts", f"{made}/mortal.py:Mortal", f"{made}/colours"]
    (made / "mortal.py").write_text(MORTAL)
    blocks = re.findall(r"^```py\n# (\w+\.py)\n(.*?)^```$", DOCUMENT.read_text(), re.S | re.M)
    for name, code in blocks:
        (made / name).write_text(code)
        specs += [f"{made}/{name}:{kind}" for kind in re.findall(r"class (\w+)\(Head\)", code)]
    running = start(tmp_path_factory.mktemp("service"), "edge", HEADS=",".join(specs))
    for head in httpx.get(f"{running.url}/heads").json()["heads"]:
        answered(running, head["name"], photo)
    yield running
    running.stop()


def test_the_examples_run(service: Service, folder: Path, environment: dict[str, str]) -> None:
    run_as_written(documents.runnable(DOCUMENT), service, folder, environment)


def test_each_is_listed_and_described(service: Service) -> None:
    heads = {head["name"]: head for head in httpx.get(f"{service.url}/heads").json()["heads"]}
    assert {"parts", "mortal", "colours", "ripeness", "foreground"} == heads.keys()
    assert heads["colours"]["classes"] == ["blue", "red"]
    assert not any(head["reason"] for head in heads.values())
    assert heads["ripeness"]["parameters"]["properties"]["at_least"]["default"] == 0.5


def test_an_unknown_name_is_refused_with_those_that_there_are(
    service: Service, photo: bytes
) -> None:
    reply = httpx.post(f"{service.url}/heads/Ripeness", files={"image": photo})
    assert reply.status_code == 404
    assert "no head 'Ripeness' is served here, only parts, mortal" in reply.json()["detail"]


def test_a_probe_answers_with_the_classes_that_it_was_taught(service: Service) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (190, 20, 25)).save(file, "PNG")
    reply = httpx.post(f"{service.url}/heads/colours", files={"image": file.getvalue()}).json()
    assert reply["result"]["class"] == "red", reply
    assert [score["class"] for score in reply["result"]["scores"]] == ["red", "blue"]


@pytest.mark.parametrize("metadata", [(), (("x-samclip-head", "parts"),)])
def test_grpc_finds_a_head_with_and_without_its_header(
    service: Service, photo: bytes, metadata: tuple[tuple[str, str], ...]
) -> None:
    request = pb.AskRequest(image=pb.Image(encoded=photo), head="parts", encoding=pb.PNG)
    with grpc.insecure_channel(service.address) as channel:
        stub = pb_grpc.CustomHeadServiceStub(channel)
        reply = stub.Ask(request, metadata=metadata)
        assert reply.masks[0].png.startswith(b"\x89PNG")
        assert len(reply.tensors) == len(reply.pictures) == 1
        with pytest.raises(grpc.RpcError, match="only parts, mortal"):
            stub.Ask(pb.AskRequest(image=pb.Image(encoded=photo), head="nobody"))


def test_the_client_and_the_command_line_ask_them(
    service: Service, photo: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cat.jpg"
    file.write_bytes(photo)
    at = ("--server", service.address)
    assert cli.main(["status", *at]) == 0
    assert "head ripeness  " in capsys.readouterr().out
    assert cli.main(["ask", "ripeness", str(file), "--set", "at_least=1", "--json", *at]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    with samclip.Client(service.address, timeout=60) as client:
        found = client.image(file).ask("ripeness", at_least=1)
        assert row == {"image": str(file), **{key: pytest.approx(found[key]) for key in found}}
        ((_, parts),) = client.images(file).ask("parts", encoding="polygons")
    upper_HW = parts["parts"][0]["mask"].array
    assert upper_HW[: len(upper_HW) // 2].all()
    assert parts["picture"].size == (4, 3)


def test_one_that_dies_is_restarted_and_harms_no_other(service: Service, photo: bytes) -> None:
    stop, codes = threading.Event(), Counter[tuple[str, int]]()
    image = {"image": photo}

    def others() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not stop.is_set():
                for path in ("/heads/ripeness", "/heads/parts", "/classify"):
                    reply = client.post(
                        path, files=image, data={"labels": "a cat"} if path == "/classify" else {}
                    )
                    codes[path, reply.status_code] += 1

    threads = [threading.Thread(target=others) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(DEATHS):
            died = httpx.post(
                f"{service.url}/heads/mortal", files=image, data={"die": "true"}, timeout=60
            )
            assert died.status_code in (500, 502, 503)
            answered(service, "mortal", photo)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {code for _, code in codes} == {200}, codes
    assert len(codes) == 3
