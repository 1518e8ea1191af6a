import asyncio
import subprocess
import sys

import pytest
from samclip.v1 import samclip_pb2 as pb

from services.heads.classification import app
from tests.in_process import png

LABELS = ["a dog", "a cat", "grass"]


def ask(*images: pb.Image, **fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=images, **{"labels": LABELS, **fields})


async def test_scores_are_the_librarys_own(caller, tiny_model):
    response = await caller("Classify", ask(pb.Image(encoded=png())))
    (result,) = response.results
    expected = tiny_model.classify(png(), LABELS)
    assert [score.label for score in result.scores] == [score.label for score in expected]
    for ours, theirs in zip(result.scores, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.similarity == pytest.approx(theirs.similarity, abs=1e-3)
    assert (result.image.width, result.image.height, result.image.cached) == (40, 30, False)
    assert (response.model.name, response.model.dtype) == ("tiny-edge", "float32")


async def test_templates_and_top_k(caller, tiny_model):
    templates = ["the {}", "photo of {}"]
    request = ask(pb.Image(encoded=png()), templates=templates, top_k=2)
    (result,) = (await caller("Classify", request)).results
    expected = tiny_model.classify(png(), LABELS, templates, top_k=2)
    assert [score.label for score in result.scores] == [score.label for score in expected]
    assert len(result.scores) == 2


async def test_several_images_are_answered_in_order_and_by_key(caller):
    images = [png(red) for red in (10, 120, 240)]
    first = await caller("Classify", ask(*(pb.Image(encoded=image) for image in images)))
    keys = [result.image.key for result in first.results]
    again = await caller("Classify", ask(*(pb.Image(key=key) for key in reversed(keys))))
    assert [result.image.key for result in again.results] == keys[::-1]
    assert all(result.image.cached for result in again.results)
    assert again.results[0].scores == first.results[2].scores


async def test_one_bad_image_of_several_is_named(caller):
    good, bad = pb.Image(encoded=png()), pb.Image(encoded=b"not an image")
    code, message = await caller.refused("Classify", ask(good, bad, good))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("image 1: the 12 bytes are not an image")
    code, message = await caller.refused("Classify", ask(good, pb.Image(key="0" * 64)))
    assert code == "FAILED_PRECONDITION"
    assert message.startswith("image 1: ")
    assert (await caller("Classify", ask(good))).results[0].image.cached


async def test_a_large_request_does_not_fill_the_queue(caller):
    images = [pb.Image(encoded=png(noise=i)) for i in range(64)]
    large = asyncio.create_task(caller("Classify", ask(*images)))
    others = [caller("Classify", ask(pb.Image(encoded=png(noise=100 + i)))) for i in range(20)]
    answers = await asyncio.gather(large, *others)
    assert [len(answer.results) for answer in answers] == [64] + [1] * 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": []}, "no labels"),
        ({"labels": ["a", " "]}, "label 1 is empty"),
        ({"labels": ["a"] * 1025}, "1025 labels, at most 1024"),
        ({"templates": ["a photo"]}, "needs {} where the label goes"),
        ({"top_k": -1}, "top_k is -1"),
        ({"images": []}, "no image"),
        ({"images": [pb.Image(key="k")] * 65}, "65 images in one request, at most 64"),
    ],
)
async def test_bad_requests_are_refused_with_what_is_wrong(caller, fields, message):
    fields = dict(fields)
    images = fields.pop("images", [pb.Image(encoded=png())])
    request = ask(*images, **fields)
    code, details = await caller.refused("Classify", request)
    assert code == "INVALID_ARGUMENT"
    assert message in details


def test_classification_and_retrieval_need_no_torch():
    program = (
        "import sys, services.heads.classification.app, services.retrieval.app;"
        "print('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"


def test_it_is_one_application(settings):
    assert app.build(settings)._bound_deployment.name == "classification"
