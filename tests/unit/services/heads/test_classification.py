"""Classification answers as the library does, for images and areas, by file or key."""

import asyncio

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Area
from samclip_core.errors import DeadlineExceeded
from samclip_core.io.masks import encode_rle
from services.backbone.texts import TextEmbedder
from tests.close import assert_close
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
    assert_close(again.results[0].scores, first.results[2].scores)


async def test_one_bad_image_of_several_is_named(caller):
    good, bad = pb.Image(encoded=png()), pb.Image(encoded=b"not an image")
    code, message = await caller.refused("Classify", ask(good, bad, good))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("image 1: the 12 bytes are not an image")
    code, message = await caller.refused("Classify", ask(good, pb.Image(key="0" * 64)))
    assert code == "FAILED_PRECONDITION"
    assert message.startswith("image 1: ")
    assert (await caller("Classify", ask(good))).results[0].image.cached


async def test_labels_that_are_refused_are_no_fault_of_one_of_several_images(caller, monkeypatch):
    async def refused(*args):
        raise DeadlineExceeded("too short for 100 s of work")

    monkeypatch.setattr(TextEmbedder, "embed", refused)
    images = [pb.Image(encoded=png(red)) for red in (10, 20)]
    code, message = await caller.refused("Classify", ask(*images))
    assert (code, message) == ("DEADLINE_EXCEEDED", "too short for 100 s of work")


async def test_a_large_request_does_not_fill_the_queue(caller):
    images = [pb.Image(encoded=png(noise=i)) for i in range(64)]
    large = asyncio.create_task(caller("Classify", ask(*images)))
    others = [caller("Classify", ask(pb.Image(encoded=png(noise=100 + i)))) for i in range(20)]
    answers = await asyncio.gather(large, *others)
    assert [len(answer.results) for answer in answers] == [64] + [1] * 20


KEY = pb.Image(key="k")


async def test_bad_requests_are_refused_with_what_is_wrong(caller):
    await caller.refuses(
        "Classify",
        (ask(KEY, labels=[]), "no labels"),
        (ask(KEY, labels=["a"] * 1025), "1025 labels, at most 1,024"),
        (ask(KEY, templates=["a photo"]), "needs {} where the label goes"),
        (ask(KEY, top_k=-1), "top_k is -1"),
        (ask(), "no image"),
        (ask(*[KEY] * 65), "65 images in one request, at most 64"),
        (ask(KEY, KEY, areas=[pb.Area()]), "areas of 2 images: send exactly one image with areas"),
    )


def mask_area(mask_HW: np.ndarray) -> pb.Area:
    height, width = mask_HW.shape
    return pb.Area(rle=pb.CocoRle(height=height, width=width, counts=encode_rle(mask_HW)))


BOX = pb.Area(box=pb.Box(x_min=5, y_min=0, x_max=20, y_max=30))
MASK_HW = np.zeros((30, 40), np.bool_)
MASK_HW[3:9, 10:30] = True


async def test_areas_are_classified_as_the_library_does(caller, tiny_model):
    request = ask(pb.Image(encoded=png()), areas=[BOX, mask_area(MASK_HW)], top_k=2)
    response = await caller("Classify", request)
    areas = [Area(box=(5, 0, 20, 30)), Area.of_mask(MASK_HW)]
    expected = tiny_model.classify_areas(png(), areas, LABELS, top_k=2)
    assert len(response.results) == 2
    for result, scores in zip(response.results, expected, strict=True):
        assert (result.image.width, result.image.height) == (40, 30)
        assert [score.label for score in result.scores] == [score.label for score in scores]
        for ours, theirs in zip(result.scores, scores, strict=True):
            assert ours.similarity == pytest.approx(theirs.similarity, abs=2e-3)
    assert response.model.dtype == "float32"
    by_key = ask(pb.Image(key=response.results[0].image.key), areas=[BOX])
    again = await caller("Classify", by_key)
    assert again.results[0].image.cached
    assert_close(again.results[0].scores[:2], response.results[0].scores)


async def test_bad_areas_are_refused_by_number(caller):
    bad = (
        ([BOX, pb.Area()], "area 1 is empty: give a box or an rle"),
        ([BOX] * 257, "257 areas in one request, at most 256"),
        ([pb.Area(box=pb.Box(x_max=41, y_max=5))], "area 0: box (0, 0, 41, 5) extends beyond"),
        ([BOX, pb.Area(box=pb.Box(x_min=4, x_max=4, y_max=5))], "area 1: box (4, 0, 4, 5) is inv"),
        ([BOX, mask_area(MASK_HW.T)], "area 1: the mask has 30×40 pixels, the image 40×30"),
        ([mask_area(MASK_HW & False)], "area 0: the mask is empty"),
        ([pb.Area(rle=pb.CocoRle(height=30, width=40, counts=b"0"))], "area 0: the counts of"),
        ([pb.Area(rle=pb.CocoRle(height=30, width=40))], "area 0: the counts are not COCO's"),
        ([pb.Area(rle=pb.CocoRle(counts=b"0" * 2**20))], "area 0: the mask has 1,048,58"),
    )
    image = pb.Image(encoded=png())
    await caller.refuses("Classify", *((ask(image, areas=areas), what) for areas, what in bad))
