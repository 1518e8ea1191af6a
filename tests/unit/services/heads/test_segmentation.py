"""Segmentation answers as the library does, refuses what it cannot, and limits its work."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from samclip.mask_codecs import decode_rle, encode_rle
from samclip.v1 import samclip_pb2 as pb

import samclip_core.answers.tiles
from samclip_core.answers import stored_objects as objects
from samclip_core.answers.everything import Search
from samclip_core.answers.examples import Example
from samclip_core.answers.find_alike import ExamplePrompt
from samclip_core.answers.find_regions import FindRegions, regions_of
from samclip_core.answers.rough import RoughMask
from samclip_core.answers.vocabularies import names_of
from samclip_core.io import image
from samclip_core.io.masks import find_runs
from samclip_core.types import EverythingMask, Prompt, TextPrompt
from services.deployment import replica
from services.heads import head, runner
from services.heads.backbone_client import BackboneClient
from services.heads.segmentation import app
from services.lake import answers
from services.request import limits, wire
from services.settings import SettingsError
from tests.close import assert_close
from tests.fakes import blobs
from tests.in_process import png
from tests.lake import NOTHING

POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])
BOX = pb.Prompt(box=pb.Box(x_min=5, y_min=5, x_max=30, y_max=25))
IMAGE = pb.Image(encoded=png())
LIKE_BOX = pb.Box(x_min=5, y_min=5, x_max=30, y_max=25)


def ask(*prompts: pb.Prompt, **fields) -> pb.SegmentRequest:
    return pb.SegmentRequest(**{"image": IMAGE, "prompts": prompts, **fields})


def everything(**fields) -> pb.SegmentEverythingRequest:
    return pb.SegmentEverythingRequest(**{"image": IMAGE, **fields})


def read(mask: pb.Mask) -> np.ndarray:
    return decode_rle(mask.rle.counts, mask.rle.height, mask.rle.width)


async def test_masks_are_the_librarys_own(caller, tiny_model):
    prompts = [Prompt(points=((20, 15),)), Prompt(box=(5, 5, 30, 25))]
    response = await caller("Segment", ask(POINT, BOX, multimask=True))
    assert response.model.dtype == "float32"
    features = tiny_model.encode(png())
    for result, expected in zip(
        response.results, tiny_model.segment(features, prompts), strict=True
    ):
        assert len(result.masks) == 3
        for mask, theirs, iou in zip(
            result.masks, expected.masks_MHW, expected.predicted_iou_M, strict=True
        ):
            agreement = (read(mask) == theirs).mean()
            assert agreement > 0.98  # embeddings are sent as float16
            assert mask.predicted_iou == pytest.approx(iou, abs=0.01)


async def test_one_mask_a_prompt_without_multimask(caller):
    response = await caller("Segment", ask(POINT, BOX, POINT))
    assert [len(result.masks) for result in response.results] == [1, 1, 1]
    assert_close(response.results[0], response.results[2])


async def test_logits_can_be_fed_back(caller):
    first = await caller("Segment", ask(POINT, encoding=pb.LOGITS))
    (mask,) = first.results[0].masks
    assert wire.from_tensor(mask.logits).shape == (64, 64)
    refined = pb.Prompt(points=POINT.points, mask_input=mask.logits)
    again = await caller("Segment", ask(refined, image=pb.Image(key=first.image.key)))
    assert again.image.cached
    assert len(again.results[0].masks) == 1


def rough(height: int = 30, width: int = 40, **more) -> pb.Prompt:
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[5:25, 5:30] = True
    rle = pb.CocoRle(height=height, width=width, counts=encode_rle(mask_HW))
    return pb.Prompt(**{"mask": rle, **more})


async def test_a_rough_mask_is_a_prompt_beside_others(caller, tiny_model, monkeypatch):
    mask_HW = read(pb.Mask(rle=rough().mask))
    response = await caller("Segment", ask(POINT, rough(), rough(points=POINT.points)))
    asked = [RoughMask.of(mask_HW), RoughMask.of(mask_HW, Prompt(points=((20, 15),)))]
    expected = tiny_model.segment(png(), [Prompt(points=((20, 15),)), *asked], multimask=False)
    for result, theirs in zip(response.results, expected, strict=True):
        (mask,) = result.masks
        assert (read(mask) == theirs.masks_MHW[0]).mean() > 0.98
    monkeypatch.setattr(limits, "MAX_RLE_BYTES", 80)
    full, empty, broken = (
        pb.CocoRle(height=30, width=40, counts=counts)
        for counts in (encode_rle(mask_HW | True), encode_rle(mask_HW & False), b"~~")
    )
    logits = wire.to_tensor(np.zeros((64, 64), np.float32))
    corner = pb.Box(x_min=31, y_min=2, x_max=39, y_max=9)
    refused = (
        (rough(40, 30), "the mask has 30×40 pixels, the image 40×30"),
        (rough(mask=pb.CocoRle()), "the mask is broken: the counts are not COCO's"),
        (rough(mask=broken), "the mask is broken: the counts are not COCO's"),
        (rough(mask=empty), "the mask is empty"),
        (rough(mask=full), "the mask covers the whole image"),
        (rough(box=corner), "the mask, of the box (5, 5, 30, 25), lies outside the box"),
        (rough(mask_input=logits), "a mask and a mask_input exclude each other"),
        (rough(text="dog"), "a mask and a text exclude each other"),
        (rough(examples=[example()]), "a mask and examples exclude each other"),
        (
            rough(mask=pb.CocoRle(height=30, width=40, counts=b"0" * 90)),
            "the mask has 96 bytes, at most 80",
        ),
    )
    await caller.refuses(
        "Segment", *((ask(POINT, prompt), f"prompt 1: {words}") for prompt, words in refused)
    )


async def test_every_encoding(caller):
    for encoding in (pb.RLE, pb.PNG, pb.POLYGONS, pb.LOGITS):
        response = await caller("Segment", ask(POINT, encoding=encoding))
        (mask,) = response.results[0].masks
        assert mask.WhichOneof("data") == pb.MaskEncoding.Name(encoding).lower()


async def test_texts_give_what_the_library_finds_beside_other_prompts(caller, tiny_model):
    box = pb.Box(x_min=5, y_min=5, x_max=30, y_max=25)
    dog, cat = pb.Prompt(text="dog", not_texts=["wolf"], box=box), pb.Prompt(text="cat")
    response = await caller("Segment", ask(POINT, dog, BOX, cat, min_score=0.0))
    point, *_ = results = response.results
    assert len(point.masks) == len(results[2].masks) == 1
    asked = [
        TextPrompt("dog", not_texts=("wolf",), where=Prompt(box=(5, 5, 30, 25))),
        TextPrompt("cat"),
    ]
    # A text alone needs no SAM embedding; a point beside it does.
    beside, nowhere = (await caller("Segment", ask(POINT, cat, min_score=1.0))).results
    assert len(beside.masks) == 1
    assert not nowhere.masks
    expected = tiny_model.find(tiny_model.encode(png()), asked, 0.0)
    assert sum(map(len, expected)) > 0
    for result, label, masks in zip(results[1::2], ("dog", "cat"), expected, strict=True):
        assert {mask.label for mask in result.masks} <= {label}
        assert len(result.masks) == len(masks)
        assert list(result.things) == [mask.thing for mask in masks]
    assert list(results[0].things) == [0]


@pytest.mark.parametrize("exclusive", [False, True])
async def test_texts_beside_each_other_are_what_the_library_finds(caller, tiny_model, exclusive):
    texts = ["dog", "cat", "tree"]
    asked = ask(*(pb.Prompt(text=text) for text in texts), min_score=0.0, exclusive=exclusive)
    found = [len(result.masks) for result in (await caller("Segment", asked)).results]
    expected = tiny_model.find(png(), texts, 0.0, exclusive=exclusive)
    assert found == [len(masks) for masks in expected]
    alone = [len(tiny_model.find(png(), [text], 0.0)[0]) for text in texts]
    assert (found != alone) == exclusive


def example(image: pb.Image = IMAGE, **place) -> pb.Example:
    return pb.Example(image=image, **(place or {"box": LIKE_BOX}))


async def test_examples_give_what_the_library_finds_beside_other_prompts(caller, tiny_model):
    other, points = pb.Image(encoded=png(90)), pb.Points(points=POINT.points)
    mask_HW = np.zeros((30, 40), np.bool_)
    mask_HW[5:25, 5:30] = True
    rle = pb.CocoRle(height=30, width=40, counts=encode_rle(mask_HW))
    examples = [example(), example(other, points=points), example(other, mask=rle)]
    prompts = (pb.Prompt(examples=examples), POINT, pb.Prompt(examples=examples, text="dog"))
    response = await caller("Segment", ask(*prompts, min_score=0.0))
    images = (png(), png(90), png(90))
    places = (Prompt(box=(5, 5, 30, 25)), Prompt(points=((20, 15),)), find_runs(mask_HW))
    asked = [Example(image, place) for image, place in zip(images, places, strict=True)]
    alike, both = tiny_model.find(png(), [ExamplePrompt(asked), ExamplePrompt(asked, "dog")], 0.0)
    assert len({mask.thing for mask in alike}) == len(alike) > 1
    first, point, last = response.results
    assert len(point.masks) == 1
    for result, expected in ((first, alike), (last, both)):
        assert list(result.things) == [mask.thing for mask in expected]
        assert len(result.masks) == len(expected)
        for mask, theirs in zip(result.masks, expected, strict=True):
            assert mask.label == theirs.label
            assert mask.label_score == pytest.approx(theirs.label_score, abs=0.02)
    (nothing,) = (await caller("Segment", ask(prompts[0], min_score=1.0))).results
    assert not nothing.masks


async def test_a_negative_example_and_a_box_leave_out_what_they_should(caller):
    wanted = pb.Prompt(examples=[example()])
    everything_found = (await caller("Segment", ask(wanted, min_score=0.0))).results[0].masks
    refused = pb.Prompt(examples=[example(), pb.Example(image=IMAGE, box=LIKE_BOX, negative=True)])
    same = (await caller("Segment", ask(refused, min_score=0.0))).results[0].masks
    assert_close(same, everything_found)  # equally like both: not more like the negative one
    corner = pb.Box(x_min=0, y_min=0, x_max=8, y_max=8)
    placed = pb.Prompt(examples=[example()], box=corner)
    few = (await caller("Segment", ask(placed, min_score=0.0))).results[0].masks
    assert len(few) < len(everything_found)


async def test_each_image_of_examples_is_fetched_once(caller, monkeypatch):
    fetched = []
    features = BackboneClient.features

    async def counted(self, context, image, *outputs, **fields):
        fetched.append(image)
        return await features(self, context, image, *outputs, **fields)

    monkeypatch.setattr(BackboneClient, "features", counted)
    other = pb.Image(encoded=png(90))
    key = (await caller("Segment", ask(POINT, image=other))).image.key
    fetched.clear()
    by_key = pb.Image(key=key)
    prompts = [pb.Prompt(examples=[example(), example(other), example(by_key)]) for _ in range(2)]
    await caller("Segment", ask(*prompts))
    assert len(fetched) == 2


async def test_what_grows_with_a_request_is_read_and_checked_beside_the_event_loop(
    caller, monkeypatch
):
    many = [*POINT.points] * 200
    placed = [pb.Prompt(examples=[example()], points=many)] * 2
    threads = set[int]()

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(prompt: Any, *given: Any) -> Any:
            if len(prompt.points) == len(many):
                threads.add(threading.get_ident())
            return work(prompt, *given)

        return call

    monkeypatch.setattr(wire, "to_prompt", counted(wire.to_prompt))
    monkeypatch.setattr(Prompt, "validate", counted(Prompt.validate))
    await caller("Segment", ask(*placed))
    assert threads
    assert threading.get_ident() not in threads


async def test_a_place_beyond_the_picture_is_refused_before_other_pictures_are_encoded(
    caller, monkeypatch
):
    fetched, features = [], BackboneClient.features

    async def counted(self, context, image, *outputs, **fields):
        fetched.append(image)
        return await features(self, context, image, *outputs, **fields)

    monkeypatch.setattr(BackboneClient, "features", counted)
    beyond = pb.Prompt(text="dog", points=[pb.Point(x=99, y=5)])
    other = pb.Prompt(examples=[example(pb.Image(encoded=png(90)))])
    await caller.refuses("Segment", (ask(beyond, other), r"prompt 0: point (99, 5) lies outside"))
    assert len(fetched) == 1


async def test_bad_examples_are_refused(caller, monkeypatch):
    def like(*examples: pb.Example, **more) -> pb.SegmentRequest:
        return ask(POINT, pb.Prompt(examples=examples, **more))

    tall = pb.CocoRle(height=40, width=30, counts=b"0")
    broken = pb.CocoRle(height=30, width=40, counts=b"~~")
    beyond = pb.Box(x_max=41, y_max=5)
    logits = wire.to_tensor(np.zeros((64, 64), np.float32))
    monkeypatch.setattr(limits, "MAX_RLE_BYTES", 12)
    images = [pb.Image(encoded=png(red)) for red in range(1, 66)]
    many = [pb.Prompt(examples=map(example, images[at : at + 13])) for at in range(0, 65, 13)]
    await caller.refuses(
        "Segment",
        (like(pb.Example(image=IMAGE)), "prompt 1: example 0: the place is empty"),
        (like(example(points=pb.Points())), "prompt 1: example 0: the place is empty"),
        (like(example(box=beyond)), "prompt 1: example 0: box (0, 0, 41, 5) extends beyond"),
        (
            like(example(mask=tall)),
            "prompt 1: example 0: the mask has 30×40 pixels, the image 40×30",
        ),
        (like(example(mask=broken)), "prompt 1: example 0: the counts are not COCO's"),
        (like(example(), example(pb.Image())), "prompt 1: example 1: the image is empty"),
        (
            like(example(pb.Image(encoded=b"what"))),
            "prompt 1: example 0: the 4 bytes are not an image",
        ),
        (
            like(example(), mask_input=logits),
            "prompt 1: examples and a mask_input exclude each other",
        ),
        (
            like(example(mask=pb.CocoRle(height=30, width=40, counts=b"0" * 20))),
            "has 26 bytes, at most",
        ),
        (ask(*many), "66 images in one request, at most 64"),
        (ask(*many * 4), "260 examples in one request, at most 256"),
        (
            ask(*[pb.Prompt(examples=[example()])] * 65),
            "65 prompts with examples, at most 64: send several requests",
        ),
    )


async def test_a_region_that_several_prompts_find_is_in_memory_and_encoded_once(
    caller, monkeypatch
):
    """A prompt can have all regions: those of many prompts would take gigabytes."""
    opened, encoded = [], []
    of_region, encode = EverythingMask.of_region, wire.to_everything_mask

    def counted_of_region(geometry, regions, index):
        opened.append(index)
        return of_region(geometry, regions, index)

    def counted(mask, encoding):
        encoded.append(mask)
        return encode(mask, encoding)

    monkeypatch.setattr(EverythingMask, "of_region", counted_of_region)
    monkeypatch.setattr(wire, "to_everything_mask", counted)
    one = pb.Prompt(examples=[example()])
    found = await caller("Segment", ask(one, one, one, min_score=0))
    first, *others = (result.masks for result in found.results)
    assert len(opened) == len(set(opened))
    assert len(opened) >= len(first) == len(encoded) > 0
    assert all([*masks] == [*first] for masks in others)


async def test_masks_of_too_many_pixels_are_refused(caller, monkeypatch):
    monkeypatch.setattr(limits, "MAX_MASK_PIXELS", 40 * 30 * 5)
    what = "send a smaller image, or fewer prompts or labels"
    too_many = (ask(*[POINT] * 2, multimask=True), ask(*[POINT] * 3, encoding=pb.PNG))
    await caller.refuses("Segment", *((request, what) for request in too_many))
    assert len((await caller("Segment", ask(*[POINT] * 5))).results) == 5
    found = len((await caller("SegmentEverything", everything())).masks)
    monkeypatch.setattr(limits, "MAX_MASK_PIXELS", 40 * 30 * (found - 1))
    await caller.refuses("SegmentEverything", (everything(), f"{found} masks of 40×30"))


async def test_more_prompts_than_a_batch_are_answered_in_groups(caller):
    found = await caller("Segment", ask(*[POINT, BOX] * 9, multimask=True))
    assert [len(result.masks) for result in found.results] == [3] * 18
    for result, same in zip(found.results[2:], found.results, strict=False):
        assert [mask.area for mask in result.masks] == [mask.area for mask in same.masks]


async def test_bad_requests_are_refused_and_a_good_one_beside_them_succeeds(caller):
    await caller.refuses(
        "Segment",
        (ask(), "no prompts"),
        (
            ask(pb.Prompt()),
            "prompt 0: the prompt is empty: give points, a box, a mask, a text or examples",
        ),
        (
            ask(POINT, pb.Prompt(points=[pb.Point(x=41, y=3)])),
            "prompt 1: point (41, 3) lies outside the image of 40×30 pixels",
        ),
        (
            ask(
                POINT,
                pb.Prompt(text="dog", mask_input=wire.to_tensor(np.zeros((64, 64), np.float32))),
            ),
            "prompt 1: a text and a mask_input exclude each other",
        ),
        (ask(pb.Prompt(not_texts=["dog"])), "prompt 0 has not_texts but no text"),
        (ask(pb.Prompt(text=" ")), "the text of prompt 0 is empty"),
        (ask(pb.Prompt(text="dog", not_texts=["cat", " "])), "a not_text of prompt 0 is empty"),
        (ask(pb.Prompt(text="dog"), min_score=1.5), "min_score is 1.5, expected 0 to 1"),
        (
            ask(POINT, pb.Prompt(text="dog", points=[pb.Point(x=41, y=3)])),
            "prompt 1: point (41, 3) lies outside the image of 40×30 pixels",
        ),
        (ask(POINT, encoding=pb.PANOPTIC), "choose another encoding, or SegmentEverything"),
        (ask(POINT, image=pb.Image()), "the image is empty"),
    )
    assert len((await caller("Segment", ask(POINT))).results) == 1


async def test_requests_at_once_are_answered_as_one_after_another(caller):
    images = [pb.Image(encoded=png(red)) for red in range(0, 200, 40)]
    asks = [ask(POINT, BOX, image=image, multimask=index % 2) for index, image in enumerate(images)]
    expected = [await caller("Segment", request) for request in asks]
    bad = ask(pb.Prompt(points=[pb.Point(x=41, y=3)]), image=images[0])
    *found, refused = await asyncio.gather(
        *(caller("Segment", request) for request in asks), caller.refused("Segment", bad)
    )
    assert refused[0] == "INVALID_ARGUMENT"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.image.key == theirs.image.key
        for result, other in zip(ours.results, theirs.results, strict=True):
            for mask, same in zip(result.masks, other.masks, strict=True):
                union = (read(mask) | read(same)).sum()
                assert union == 0 or (read(mask) & read(same)).sum() / union >= 0.999


def test_batches_of_the_decoder_can_change_while_it_runs(settings):
    built = app.build(settings)._bound_deployment
    assert built.user_config == {
        "checkpoint": settings.checkpoint,
        "models": (),
        "model_idle_s": 0,
        "max_models_bytes": 0,
        "log_level": "WARNING",
        "max_prompt_batch": settings.max_prompt_batch,
    }
    half = replica.MAX_ONGOING // 2
    with pytest.raises(SettingsError, match=f"max_prompt_batch is {half + 1}"):
        app.build(settings.model_copy(update={"max_prompt_batch": half + 1}))


def test_a_bad_change_is_refused_and_nothing_changes(settings):
    service = app.Segmentation(settings)
    service.tune(settings.model_copy(update={"max_prompt_batch": 9}))
    assert service._decoder._batcher._max_size == 9
    with pytest.raises(SettingsError, match="max_prompt_batch is 999"):
        service.tune(settings.model_copy(update={"max_prompt_batch": 999}))
    assert service._decoder._batcher._max_size == service.settings.max_prompt_batch == 9


async def test_too_many_texts_are_refused_before_the_encoder_is_asked(caller):
    """The image and its texts go to the encoder together, and few bytes name many texts."""
    prompts = [
        pb.Prompt(text=f"{n}", not_texts=[f"{n} {other}" for other in range(99)]) for n in range(9)
    ]
    with pytest.raises(grpc.aio.AioRpcError, match="the prompts have 900 different texts, at most"):
        await caller("Segment", ask(*prompts, image=pb.Image(encoded=b"not looked at")))


@pytest.mark.parametrize(
    ("may_encode", "encoding", "where"),
    [(True, pb.RLE, "device"), (True, pb.PNG, "work"), (False, pb.RLE, "work")],
)
async def test_a_device_with_one_thread_and_masks_that_take_long_encode_elsewhere(
    caller, monkeypatch, may_encode, encoding, where
):
    (service,) = (service for service in caller.services if isinstance(service, app.Segmentation))
    names, encode = [], wire.to_mask

    def encoded(*given: object) -> pb.Mask:
        names.append(threading.current_thread().name.split("_")[0])
        return encode(*given)

    assert service._decoder.may_encode is not service._decoder.sam_head.engine.batches
    monkeypatch.setattr(service._decoder, "may_encode", may_encode)
    monkeypatch.setattr(app, "SMALL_PIXELS", 40 * 30)
    monkeypatch.setattr(wire, "to_mask", encoded)
    await caller("Segment", ask(POINT, encoding=encoding))
    assert names == [where]


async def test_everything_is_the_librarys_own(caller, tiny_model):
    request = everything(labels=["dog", "cat"], min_label_score=0)
    response = await caller("SegmentEverything", request)
    expected = tiny_model.segment_everything(png(), labels=["dog", "cat"], min_label_score=0)
    assert len(response.masks) == len(expected) > 0
    assert {mask.label for mask in response.masks} <= {"dog", "cat"}
    unnamed = await caller("SegmentEverything", everything(encoding=pb.LOGITS))
    found = {(mask.label, mask.WhichOneof("data")) for mask in unnamed.masks}
    assert found == {("", "logits")}


async def test_names_come_only_from_the_caller_and_only_if_they_are_likely(caller):
    for fields, names in (
        ({"labels": ["dog", "cat"], "min_label_score": 1.0}, {""}),
        ({"vocabulary": "coco", "min_label_score": 1.0}, {""}),
        ({"vocabulary": "coco", "min_label_score": 0.0}, set(names_of("coco"))),
    ):
        response = await caller("SegmentEverything", everything(**fields))
        assert {mask.label for mask in response.masks} <= names
        assert response.masks


@pytest.mark.parametrize(
    "fields", [{"tiles": 2}, {"labels": ["dog"], "points_per_side": 5}], ids=str
)
async def test_replaying_the_stream_gives_the_reply(caller, fields):
    updates = [update async for update in caller.stream("StreamEverything", everything(**fields))]
    shown = {}
    for update in updates:
        for number in update.withdrawn:
            del shown[number]
        shown |= {found.id: found.mask for found in update.found}
    expected = await caller("SegmentEverything", everything(**fields))
    assert sorted(mask.SerializeToString() for mask in shown.values()) == sorted(
        mask.SerializeToString() for mask in expected.masks
    )
    assert len(updates) > 1
    assert (updates[0].image.key, updates[0].model) == (expected.image.key, expected.model)
    assert not any(update.HasField("image") or update.HasField("model") for update in updates[1:])
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    assert progress[-1] == 1


async def test_a_stream_has_no_panoptic_picture(caller):
    request = everything(encoding=pb.PANOPTIC, image=pb.Image(encoded=b"not looked at"))
    with pytest.raises(grpc.aio.AioRpcError, match="choose another encoding, or SegmentEvery"):
        async for _ in caller.stream("StreamEverything", request):
            pass


async def test_the_masks_of_a_whole_stream_are_limited(caller, monkeypatch):
    updates = [update async for update in caller.stream("StreamEverything", everything())]
    sent = [len(update.found) for update in updates]
    assert max(sent) < sum(sent)
    monkeypatch.setattr(limits, "MAX_MASK_PIXELS", 40 * 30 * (sum(sent) - 1))
    with pytest.raises(grpc.aio.AioRpcError, match=f"{sum(sent)} masks of 40×30"):
        async for _ in caller.stream("StreamEverything", everything()):
            pass


LARGE = 160, 200  # of which tiles have more than their edges


def large(number: int = 0) -> bytes:
    """Return a picture of noise as a file."""
    pixels_HW3 = np.random.default_rng(number).integers(0, 255, (*LARGE, 3), np.uint8)
    return image.encode_png(pixels_HW3)


async def test_few_requests_hold_a_decoded_picture_at_once(caller, monkeypatch):
    held = most = 0
    lock, leave = threading.Lock(), threading.Event()

    def counted(encoded: bytes, limits: Any) -> np.ndarray:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
            if held == head.PICTURES:
                leave.set()
        leave.wait(30)
        pixels_HW3 = image.decode(encoded, limits)
        with lock:
            held -= 1
        return pixels_HW3

    ours = SimpleNamespace(decode=counted, encode_png=image.encode_png)
    monkeypatch.setattr(runner, "pixels", ours)
    requests = [
        caller("SegmentEverything", everything(tiles=2, image=pb.Image(encoded=large(number))))
        for number in range(4)
    ]
    assert all(reply.masks for reply in await asyncio.gather(*requests))
    assert (held, most) == (0, head.PICTURES)


async def test_everything_in_tiles_is_that_of_the_library(caller, tiny_model):
    picture = pb.Image(encoded=large())
    response = await caller("SegmentEverything", everything(tiles=2, image=picture))
    expected = tiny_model.segment_everything(large(), tiles=2)
    assert len(response.masks) == pytest.approx(len(expected), abs=3)
    for mask in response.masks:
        assert read(mask).shape == LARGE
        assert read(mask).sum() == mask.area
    known = pb.Image(key=response.image.key)  # tiles are cached, too
    again = await caller("SegmentEverything", everything(tiles=2, image=known))
    assert_close(again.masks, response.masks)
    code, details = await caller.refused("SegmentEverything", everything(tiles=3, image=known))
    assert (code, "send the image" in details) == ("FAILED_PRECONDITION", True)


def one_disc_in_each(model, parts):
    """Return ``FindRegions.steps`` that finds a disc in each of three parts of a picture.

    The second disc repeats the first one, and the third the second, but not the first.
    """
    features = [model.encode(part_HW3).output("SAM") for part_HW3 in parts]

    def steps(asked, found, *_):
        yield from ()
        number = int(np.argmin([np.abs(found.output("SAM") - one).mean() for one in features]))
        x, width, quality = ((196.3, 400, 0.9), (199, 229, 0.8), (201.7 - 171, 229, 0.9))[number]
        pixels_s = (np.arange(128, dtype=np.float32) + 0.5) * (width / 128)
        inside_ss = 1 - ((pixels_s[:, None] - 112) / 80) ** 2 - ((pixels_s - x) / 12) ** 2
        return regions_of(found, [EverythingMask(found.geometry, 5 * inside_ss, quality, 0.9)])

    return steps


async def test_library_service_and_batch_remove_the_same_repeated_masks(
    caller, tiny_model, monkeypatch
):
    picture_HW3 = np.random.default_rng(0).integers(0, 255, (224, 400, 3), np.uint8)
    parts = picture_HW3, picture_HW3[:, :229], picture_HW3[:, 171:]
    monkeypatch.setattr(FindRegions, "steps", one_disc_in_each(tiny_model, parts))
    (of_library,) = tiny_model.segment_everything(picture_HW3, tiles=2)
    picture = pb.Image(encoded=image.encode_png(picture_HW3))
    (of_service,) = (await caller("SegmentEverything", everything(tiles=2, image=picture))).masks
    work = NOTHING | {"regions": True, "tiles": [2, 2]}
    prepared = answers.prepare(tiny_model, work, picture_HW3)
    (encoded,) = answers.encode(tiny_model, [prepared], 3)
    row = answers.answer(tiny_model, work, encoded)
    assert (len(row["regions"]), objects.count(row["objects"])) == (1, 1)
    left = [
        of_library.mask_HW.nonzero()[1].min(),
        of_service.box.x_min,
        row["regions"][0]["box"][0],
    ]
    assert left == pytest.approx([189.7] * 3, abs=2)


async def test_texts_and_examples_are_searched_in_tiles(caller, tiny_model):
    picture = pb.Image(encoded=large())
    example = pb.Example(image=picture, box=pb.Box(x_min=5, y_min=5, x_max=60, y_max=60))
    prompts = [pb.Prompt(text="dog"), pb.Prompt(examples=[example])]
    request = pb.SegmentRequest(image=picture, prompts=prompts, tiles=2, min_score=0)
    response = await caller("Segment", request)
    (texts,) = tiny_model.find(large(), ["dog"], min_score=0, tiles=2)
    assert len(response.results[0].masks) == pytest.approx(len(texts), abs=2)
    for result in response.results:
        scores = [mask.label_score for mask in result.masks]
        assert scores == sorted(scores, reverse=True)
        assert len(result.things) == len(scores)
        assert all(read(mask).shape == LARGE for mask in result.masks)


async def test_masks_in_tiles_are_counted_after_each_prompt(caller, monkeypatch):
    counted, of_label = [], samclip_core.answers.tiles.of_label

    def counted_of_label(found):
        counted.append(found)
        return of_label(found)

    monkeypatch.setattr(samclip_core.answers.tiles, "of_label", counted_of_label)
    monkeypatch.setattr(limits, "MAX_MASK_PIXELS", LARGE[0] * LARGE[1] - 1)
    picture = pb.Image(encoded=large())
    box = pb.Box(x_min=5, y_min=5, x_max=60, y_max=60)
    prompt = pb.Prompt(examples=[pb.Example(image=picture, box=box)])
    request = pb.SegmentRequest(image=picture, prompts=[prompt] * 3, tiles=2, min_score=0)
    code, details = await caller.refused("Segment", request)
    assert (code, "masks of 200×160" in details) == ("INVALID_ARGUMENT", True)
    assert len(counted) == 1


async def test_bad_requests_for_tiles(caller):
    def asked(tiles: int = 2, **fields: Any) -> pb.SegmentRequest:
        return pb.SegmentRequest(
            **{"image": IMAGE, "prompts": [pb.Prompt(text="dog")], **fields}, tiles=tiles
        )

    box = pb.Box(x_max=9, y_max=9)
    bad = (
        (asked(5), "tiles is 5, expected 0"),
        (asked(4), "tiles is 4, and 40×30 pixels make tiles of"),
        (asked(prompts=[pb.Prompt(text="dog", box=box)]), "prompt 0: tiles search the whole"),
        (asked(prompts=[pb.Prompt(box=box)]), "prompt 0: tiles search the whole"),
        (asked(encoding=pb.LOGITS), "the logits of a tile are no mask_input"),
    )
    await caller.refuses("Segment", *bad)


@pytest.mark.parametrize("encoding", [pb.RLE, pb.PNG])
async def test_masks_come_in_the_order_of_the_areas_that_they_report(caller, monkeypatch, encoding):
    monkeypatch.setattr(Search, "found", blobs())
    response = await caller("SegmentEverything", everything(encoding=encoding))
    areas = [mask.area for mask in response.masks]
    assert areas == sorted(areas, reverse=True)


async def test_a_panoptic_picture_has_the_masks(caller):
    fields = {"labels": ["dog", "cat"], "min_label_score": 0.0}
    masks = (await caller("SegmentEverything", everything(**fields))).masks
    response = await caller("SegmentEverything", everything(**fields, encoding=pb.PANOPTIC))
    segments = response.panoptic.segments_info
    assert not response.masks
    assert 0 < len(segments) <= len(masks)
    covered = np.zeros((30, 40), bool)
    for mask in masks:
        covered |= read(mask)
    assert sum(segment.area for segment in segments) == covered.sum()
    assert {(s.category_id, s.label) for s in segments} <= {(1, "dog"), (2, "cat")}


async def test_bad_requests_for_everything(caller):
    bad = (
        ({"points_per_side": 65}, "points_per_side is 65"),
        ({"labels": [""]}, "label 0 is empty"),
        ({"encoding": 7}, "mask encoding 7"),
        ({"labels": ["dog"], "vocabulary": "coco"}, "exclude each other"),
        ({"vocabulary": "imagenet"}, "choose one of coco, lvis"),
        ({"min_label_score": 1.5}, "min_label_score is 1.5, expected 0 to 1"),
        ({"min_label_score": float("nan")}, "min_label_score is nan"),
        ({"tiles": 5}, "tiles is 5, expected 0"),
        ({"tiles": 2, "encoding": pb.LOGITS}, "the logits of a tile are no mask_input"),
    )
    await caller.refuses("SegmentEverything", *((everything(**some), what) for some, what in bad))
