"""``tritonclient`` over both ports: python triton_client.py HTTP GRPC KEY PHOTO."""

import os
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

http, grpc, key, path = sys.argv[1:]
PHOTO = np.array([Path(path).read_bytes()], object)
LABELS = np.array(["a photo of a rocket", "a photo of a cat"], object)
POINTS = np.array([[200, 150], [5, 5]], np.float32)
BOX = np.array([15, 0, 385, 299], np.float32)


def refused(ask, *arguments, **options):
    """Return the message of a request that must fail."""
    try:
        ask(*arguments, **options)
    except InferenceServerException as error:
        return error.message()
    return "answered"


def answers_of(library, address):
    client = library.InferenceServerClient(address)

    def infer(model, **inputs):
        tensors = []
        for name, (datatype, array) in inputs.items():
            tensor = library.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        return client.infer(model, tensors, headers={"x-api-key": key}, request_id="7")

    headers = {"x-api-key": key}
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("segment", headers=headers)
    assert client.get_server_metadata(headers=headers)
    assert client.get_model_metadata("segment", headers=headers)
    image = {"image": ("BYTES", PHOTO)}
    image_D = infer("embed-image", **image).as_numpy("embedding")
    text_2D = infer("embed-text", text=("BYTES", LABELS)).as_numpy("embedding")
    scores_2 = infer("classify", **image, labels=("BYTES", LABELS)).as_numpy("scores")
    inside = ("INT32", np.array([1, 0], np.int32))
    clicked = infer("segment", **image, points=("FP32", POINTS), point_labels=inside)
    boxed_HW = infer("segment", **image, box=("FP32", BOX)).as_numpy("mask")
    mask_HW = clicked.as_numpy("mask")
    assert mask_HW.shape == boxed_HW.shape == (300, 451)
    cosine_2 = text_2D @ image_D
    assert cosine_2[scores_2.argmax()] > cosine_2.max() - 1e-3
    if os.environ["TRAINED"]:
        assert scores_2.argmax() == 1
        assert (mask_HW[150, 200], mask_HW[5, 5]) == (1, 0)
    assert "no model" in refused(infer, "paint", **image)
    assert "no input" in refused(infer, "segment", box=("FP32", BOX))
    wrong = {"x-api-key": "wrong"}
    assert refused(client.get_server_metadata, headers=wrong).startswith("no API key")
    if library is tritonclient.grpc:
        assert refused(client.get_model_repository_index, headers=headers).startswith("no such rpc")
    else:
        index = client.get_model_repository_index(headers=headers)
        assert {"name": "segment", "version": "1", "state": "READY", "reason": ""} in index
    return image_D, text_2D, scores_2, mask_HW, boxed_HW


over_http = answers_of(tritonclient.http, http)
over_grpc = answers_of(tritonclient.grpc, grpc)
for one, other in zip(over_http, over_grpc, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
print("ok")
