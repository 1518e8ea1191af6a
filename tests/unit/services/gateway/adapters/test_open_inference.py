"""The Open Inference Protocol over HTTP and gRPC: the same answers as our own API."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as samclip

from samclip_core.errors import InvalidRequest
from services.gateway.adapters.adapter import Applications
from services.gateway.adapters.open_inference import open_inference_pb2 as pb
from services.gateway.adapters.open_inference import open_inference_pb2_grpc as pb_grpc
from services.gateway.adapters.open_inference import routes
from services.gateway.adapters.open_inference.models import MODELS, Spec
from services.gateway.adapters.open_inference.routes import HEADER, InferenceService
from services.request import wire
from services.request.calls import SECRET_HEADER, UNLIMITED
from services.request.routes import GATEWAY
from tests.in_process import ADMITTED, Adapter, Caller
from tests.unit.services.gateway.adapters.conftest import READY


class Endless(list[int]):
    """A shape of more sides than can be walked."""

    def __iter__(self) -> Any:
        raise AssertionError("walked")


def test_a_shape_of_too_many_sides_is_refused_before_it_is_walked() -> None:
    with pytest.raises(InvalidRequest, match=r"is BYTES \[0, 0\], expected BYTES \[-1\]"):
        Spec("text", "BYTES", (-1,)).read("BYTES", Endless([0] * 1000), [])


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        *(("FP32", values) for values in ([None], ["1.5"], [True], [[0.5], [None]], [10**400])),
        *(("FP32", values) for values in ([True, 1.0], [[True], [2]], [[1], [2, 3]])),
        *(("INT32", values) for values in ([0.7], [None], [2**31], ["1"], [True, 2])),
        ("UINT8", [-1]),
    ],
)
def test_what_is_no_number_of_its_type_is_refused(datatype: str, values: list[object]) -> None:
    """A null was NaN, and the label 0.7 was 0."""
    with pytest.raises(InvalidRequest, match=rf"'numbers' is not {datatype} \[-1\]"):
        Spec("numbers", datatype, (-1,)).read(datatype, [len(values)], values)


def test_numbers_are_read_as_their_type() -> None:
    for datatype, values in (("FP32", [2**70, 2.5]), ("INT32", [-1, 1]), ("UINT8", [])):
        found = Spec("numbers", datatype, (-1,)).read(datatype, [len(values)], values)
        assert found.tolist() == values


RAW = {"FP32": "<f4", "INT32": "<i4", "UINT8": "u1"}
Arrays = dict[str, np.ndarray]


def packed(array: np.ndarray) -> tuple[str, bytes]:
    """Return the datatype and the raw bytes of a tensor, as the specification lays them out."""
    if array.dtype == object:
        return "BYTES", b"".join(len(one).to_bytes(4, "little") + one for one in array.ravel())
    (datatype,) = [name for name, dtype in RAW.items() if array.dtype == dtype]
    return datatype, array.tobytes()


def objects(*elements: bytes) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


class Servicer(InferenceService):
    name = "GRPCInferenceService"
    readiness = READY

    def __init__(self, applications: Applications):
        self.applications = applications


@pytest.fixture
async def stub(applications: Applications) -> AsyncIterator[pb_grpc.GRPCInferenceServiceStub]:
    server = grpc.aio.server(options=UNLIMITED)
    service: Any = Adapter(Servicer(applications))
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)
    await server.stop(None)


async def over_http(adapters: httpx.AsyncClient, model: str, given: Arrays) -> Arrays:
    """Ask with binary tensors, and check that the reply with JSON has the same numbers."""
    inputs, raw = [], []
    for name, array in given.items():
        datatype, data = packed(array)
        raw.append(data)
        size = {"binary_data_size": len(data)}
        one = {"name": name, "shape": array.shape, "datatype": datatype, "parameters": size}
        inputs.append(one)
    asked: dict[str, Any] = {"id": "7", "inputs": inputs}
    found = []
    for binary in (True, False):
        asked["parameters"] = {"binary_data_output": binary}
        head = json.dumps(asked).encode()
        reply = await adapters.post(
            f"/v2/models/{model}/infer",
            content=b"".join((head, *raw)),
            headers={HEADER: str(len(head))},
        )
        assert reply.status_code == 200, reply.text
        found.append(_arrays(reply))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], atol=1e-6)
    return found[0]


def _arrays(reply: httpx.Response) -> Arrays:
    start = int(reply.headers.get(HEADER, len(reply.content)))
    body = json.loads(reply.content[:start])
    assert (body["id"], body["model_version"]) == ("7", "1")
    arrays = {}
    for output in body["outputs"]:
        dtype, shape = RAW[output["datatype"]], output["shape"]
        if "data" in output:
            arrays[output["name"]] = np.array(output["data"], dtype).reshape(shape)
            continue
        end = start + output["parameters"]["binary_data_size"]
        arrays[output["name"]] = np.frombuffer(reply.content[start:end], dtype).reshape(shape)
        start = end
    assert start == len(reply.content)
    return arrays


async def over_grpc(stub: Any, model: str, given: Arrays) -> Arrays:
    request = pb.ModelInferRequest(model_name=model, id="7")
    for name, array in given.items():
        datatype, data = packed(array)
        request.inputs.add(name=name, shape=array.shape, datatype=datatype)
        request.raw_input_contents.append(data)
    reply = await stub.ModelInfer(request, metadata=ADMITTED)
    assert (reply.model_name, reply.id) == (model, "7")
    return {
        one.name: np.frombuffer(raw, RAW[one.datatype]).reshape(one.shape)
        for one, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


@pytest.fixture
def inputs(photo: bytes) -> dict[str, Arrays]:
    image = {"image": objects(photo)}
    return {
        "embed-image": image,
        "embed-text": {"text": objects(b"a cat", "ein Hündchen".encode())},
        "classify": image | {"labels": objects(b"a dog", b"a cat", b"a dog")},
        "segment": image
        | {
            "points": np.array([[10.5, 12.5], [30.5, 5.5]], np.float32),
            "point_labels": np.array([1, 0], np.int32),
        },
    }


@pytest.fixture
async def expected(caller: Caller, photo: bytes) -> dict[str, Arrays]:
    """Return what our own API answers."""
    image = samclip.Image(encoded=photo)
    embed = samclip.EmbedRequest(image=image, outputs=[samclip.CLIP_POOLED], inline=True)
    pooled = wire.from_tensor((await caller("Embed", embed)).tensors[0])
    texts = samclip.EmbedTextRequest(texts=["a cat", "ein Hündchen"])
    classify = samclip.ClassifyRequest(images=[image], labels=["a dog", "a cat", "a dog"])
    scores = (await caller("Classify", classify)).results[0].scores
    score = {one.label: one.score for one in scores}
    points = [samclip.Point(x=10.5, y=12.5), samclip.Point(x=30.5, y=5.5, negative=True)]
    segment = samclip.SegmentRequest(image=image, prompts=[samclip.Prompt(points=points)])
    (mask,) = (await caller("Segment", segment)).results[0].masks
    return {
        "embed-image": {"embedding": pooled.astype(np.float32)},
        "embed-text": {"embedding": wire.from_tensor((await caller("EmbedText", texts)).tensor)},
        "classify": {"scores": np.array([score[x] for x in ("a dog", "a cat", "a dog")], "f4")},
        "segment": {
            "mask": decode_rle(mask.rle.counts, 30, 40).astype(np.uint8),
            "predicted_iou": np.array([mask.predicted_iou], np.float32),
        },
    }


@pytest.mark.parametrize("model", MODELS)
async def test_both_ways_give_the_answers_of_our_own_api(
    model: str,
    adapters: httpx.AsyncClient,
    stub: Any,
    inputs: dict[str, Arrays],
    expected: dict[str, Arrays],
) -> None:
    for found in (
        await over_http(adapters, model, inputs[model]),
        await over_grpc(stub, model, inputs[model]),
    ):
        assert found.keys() == expected[model].keys()
        for name, array in found.items():
            assert array.shape == expected[model][name].shape
            np.testing.assert_allclose(array, expected[model][name], atol=1e-6)


async def test_json_alone_is_understood(
    adapters: httpx.AsyncClient, caller: Caller, photo: bytes
) -> None:
    box = samclip.Box(x_min=2, y_min=3, x_max=30, y_max=20)
    segment = samclip.SegmentRequest(
        image=samclip.Image(encoded=photo), prompts=[samclip.Prompt(box=box)]
    )
    (mask,) = (await caller("Segment", segment)).results[0].masks
    asked = {
        "inputs": [
            {**IMAGE, "data": [base64.b64encode(photo).decode()]},
            {"name": "box", "shape": [4], "datatype": "FP32", "data": [2, 3, 30, 20]},
        ],
        "outputs": [{"name": "predicted_iou"}],
    }
    reply = await adapters.post("/v2/models/segment/versions/1/infer", json=asked)
    body = reply.json()
    assert [one["name"] for one in body["outputs"]] == ["predicted_iou"]
    assert body["outputs"][0]["data"] == pytest.approx([mask.predicted_iou])
    assert "id" not in body


async def test_typed_contents_are_understood(stub: Any, expected: dict[str, Arrays]) -> None:
    request = pb.ModelInferRequest(model_name="embed-text")
    contents = pb.InferTensorContents(bytes_contents=[b"a cat", "ein Hündchen".encode()])
    request.inputs.add(name="text", shape=[2], datatype="BYTES", contents=contents)
    reply = await stub.ModelInfer(request, metadata=ADMITTED)
    found = np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(reply.outputs[0].shape)
    np.testing.assert_allclose(found, expected["embed-text"]["embedding"], atol=1e-6)


async def test_health_and_metadata_agree(adapters: httpx.AsyncClient, stub: Any) -> None:
    assert (await stub.ServerLive(pb.ServerLiveRequest(), metadata=ADMITTED)).live
    assert (await stub.ServerReady(pb.ServerReadyRequest(), metadata=ADMITTED)).ready
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/classify/ready"):
        assert (await adapters.get(path)).status_code == 200
    with pytest.raises(grpc.aio.AioRpcError, match="only what comes through the front door"):
        await stub.ServerLive(pb.ServerLiveRequest(), metadata=[(SECRET_HEADER, "guessed")])
    server = await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=ADMITTED)
    assert (await adapters.get("/v2")).json()["version"] == server.version
    for model in MODELS:
        asked = pb.ModelMetadataRequest(name=model)
        over_grpc = await stub.ModelMetadata(asked, metadata=ADMITTED)
        over_http = (await adapters.get(f"/v2/models/{model}")).json()
        assert over_http["versions"] == list(over_grpc.versions)
        for way in ("inputs", "outputs"):
            assert over_http[way] == [
                {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
                for one in getattr(over_grpc, way)
            ]


async def test_it_is_ready_when_its_application_is(
    adapters: httpx.AsyncClient, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(READY.reports, "classification", {"ready": False})
    assert (await adapters.get("/v2/health/ready")).status_code == 503
    assert (await adapters.get("/v2/models/classify/ready")).status_code == 503
    assert (await adapters.get("/v2/models/segment/ready")).status_code == 200
    ready = await stub.ModelReady(pb.ModelReadyRequest(name="classify"), metadata=ADMITTED)
    assert not ready.ready
    assert not (await stub.ServerReady(pb.ServerReadyRequest(), metadata=ADMITTED)).ready


IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a cat"]}
POINTS = {"name": "points", "shape": [1, 2], "datatype": "FP32", "data": [[5, 5]]}
LABELS = {"name": "point_labels", "shape": [1], "datatype": "INT32"}


@pytest.mark.parametrize(
    ("model", "asked", "code", "words"),
    [
        ("paint", {}, 404, "no model 'paint'"),
        ("embed-text/versions/2", {}, 404, "no version '2'"),
        ("embed-text", {}, 400, "no input 'text'"),
        ("embed-text", {"inputs": "x"}, 400, "not a list of objects"),
        ("embed-text", {"inputs": [TEXT, TEXT]}, 400, "twice"),
        ("embed-text", {"inputs": [{**TEXT, "datatype": "FP32"}]}, 400, "expected BYTES"),
        ("embed-text", {"inputs": [{**TEXT, "shape": [1, 1]}]}, 400, "expected BYTES"),
        ("embed-text", {"inputs": [{**TEXT, "shape": [2]}]}, 400, "is not BYTES [-1]"),
        ("embed-text", {"inputs": [{**TEXT, "shape": ["1"]}]}, 400, "of at most 32,768"),
        ("embed-text", {"inputs": [{**TEXT, "shape": [2**70]}]}, 400, "of at most 32,768"),
        ("embed-text", {"inputs": [{**TEXT, "data": [1]}]}, 400, "not a string"),
        ("embed-text", {"inputs": [{**TEXT, "name": "words"}]}, 400, "unknown input"),
        ("embed-text", {"inputs": [TEXT], "outputs": [{"name": "x"}]}, 400, "unknown output"),
        ("embed-text", {"inputs": [{**TEXT, "data": [" "]}]}, 400, "is empty"),
        ("embed-image", {"inputs": [IMAGE]}, 400, "image"),
        ("embed-image", {"inputs": [{**IMAGE, "data": ["https://a.org/b"]}]}, 400, "an address"),
        ("embed-text", {"id": [[]], "inputs": [TEXT]}, 400, "no text as 'id'"),
        ("segment", {"inputs": [IMAGE, {**POINTS, "data": ["x"]}]}, 400, "not FP32"),
        ("segment", {"inputs": [IMAGE, {**POINTS, "data": [1e308, 1]}]}, 400, "not FP32"),
        ("segment", {"inputs": [IMAGE, POINTS]}, 400, "point_labels need the same length"),
        ("segment", {"inputs": [IMAGE, POINTS, {**LABELS, "data": [2]}]}, 400, "1 for inside"),
    ],
)
async def test_errors_have_the_protocols_shape(
    adapters: httpx.AsyncClient, model: str, asked: dict[str, Any], code: int, words: str
) -> None:
    reply = await adapters.post(f"/v2/models/{model}/infer", json=asked)
    assert (reply.status_code, reply.json().keys()) == (code, {"error"})
    assert words in reply.json()["error"]


@pytest.mark.parametrize(
    ("size", "header", "words"),
    [
        (9, 0, "ends within an element"),
        (10, 0, "not that of its data"),
        (4, 0, "after the last binary tensor"),
        (9, 10_000, "the body has"),
    ],
)
async def test_binary_tensors_are_checked(
    adapters: httpx.AsyncClient, size: int, header: int | str, words: str
) -> None:
    one = {**TEXT, "parameters": {"binary_data_size": size}}
    del one["data"]
    head = json.dumps({"inputs": [one]}).encode()
    data = (100).to_bytes(4, "little") + b"a cat" if size != 4 else bytes(9)
    headers = {HEADER: str(header or len(head))}
    reply = await adapters.post("/v2/models/embed-text/infer", content=head + data, headers=headers)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_the_front_door_lets_in_every_rpc_of_the_protocol() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert set(GATEWAY[service.full_name]) == {method.name for method in service.methods}


def test_no_more_elements_are_read_than_a_tensor_has() -> None:
    points, texts = Spec("points", "FP32", (-1, 2)), Spec("text", "BYTES", (-1,))
    with pytest.raises(InvalidRequest, match="at most 32,768 elements"):
        points.read("FP32", [16_385, 2], bytes(8 * 16_385))
    with pytest.raises(InvalidRequest, match="more than 2"):
        texts.read("BYTES", [2], bytes(4 * 3))
    with pytest.raises(InvalidRequest) as caught:
        texts.read("BYTES", ["x" * 10_000], b"")
    assert len(str(caught.value)) < 200


async def test_grpc_errors_have_their_codes(stub: Any) -> None:
    async def refused(method: Any, request: Any, metadata: Any = ADMITTED) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, metadata=metadata)
        return caught.value.code().name, caught.value.details() or ""

    unknown = pb.ModelInferRequest(model_name="paint")
    assert (await refused(stub.ModelInfer, unknown))[0] == "NOT_FOUND"
    short = pb.ModelInferRequest(model_name="embed-text", raw_input_contents=[b""])
    code, words = await refused(stub.ModelInfer, short)
    assert (code, words) == ("INVALID_ARGUMENT", "1 raw_input_contents for 0 inputs")


def test_a_mask_of_many_pixels_is_not_json() -> None:
    huge = {"mask": np.zeros((1001, 1000), np.uint8)}
    with pytest.raises(InvalidRequest, match="ask for binary data"):
        routes._reply({}, huge, {}, as_bytes=False)
