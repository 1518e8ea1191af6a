"""The client against a service with known answers."""

import asyncio
import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
import samclip
from PIL import Image, ImageOps
from samclip.mask_codecs import decode_rle, encode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import image_key
from tests.fake_server import FakeService, bands
from tests.unit.client.conftest import HEIGHT, WIDTH, Server, png


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


def test_classify(client: samclip.Client) -> None:
    labels = ["cat", "a longer one", "dog house"]
    scores = client.image(png()).classify(labels, top_k=2)
    assert [score.label for score in scores] == ["a longer one", "dog house"]
    assert scores[0].score == pytest.approx(12 / 24)
    assert scores[0].similarity == pytest.approx(0.12)


def test_classify_areas(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    (mask,) = photo.segment(boxes=[(3, 4, 10, 12)])
    rankings = photo.classify_areas(
        ["cat", "horse"], boxes=[(1, 2, 5, 6), (0, 0, 2, 2)], masks=[mask, mask.array], top_k=1
    )
    assert [[score.label for score in ranking] for ranking in rankings] == [["horse"]] * 4
    first, second, *masks = service.calls[-1][0].areas
    assert first.box == pb.Box(x_min=1, y_min=2, x_max=5, y_max=6)
    assert second.box == pb.Box(x_max=2, y_max=2)
    for area in masks:
        decoded_HW = decode_rle(area.rle.counts, area.rle.height, area.rle.width)
        np.testing.assert_array_equal(decoded_HW, rectangle(3, 4, 10, 12))
    assert len(photo.classify_areas(["cat"], boxes=(1, 2, 5, 6))) == 1


def test_search_by_parts(service: FakeService, client: samclip.Client) -> None:
    client.index("pets", {"a": png()})
    photo, mask = client.image(png()), rectangle(3, 4, 10, 12)
    client.search("pets", image=photo, box=(1, 2, 5, 6), with_text="asleep")
    request = service.calls[-1][0]
    assert request.area.box == pb.Box(x_min=1, y_min=2, x_max=5, y_max=6)
    assert request.with_text == "asleep"
    client.search("pets", image=photo, mask=mask)
    assert service.calls[-1][0].area.rle.counts == encode_rle(mask)
    client.search("pets", id="a", with_text="asleep")
    assert not service.calls[-1][0].HasField("area")


def test_search_for_objects(service: FakeService, client: samclip.Client) -> None:
    images = {str(number): png(number) for number in range(9)}
    assert client.index("pets", images, objects=True).indexed == 9
    assert [len(request.items) for request, _ in service.calls] == [4, 4, 1]
    assert all(request.objects for request, _ in service.calls)
    client.index("pets", {"0": images["0"], "1": images["1"]}, objects=True, tiles="auto")
    assert [(len(request.items), request.tiles) for request, _ in service.calls[3:]] == [
        (1, -1)
    ] * 2
    (found,) = client.describe("pets")
    assert found.objects == 1
    hit = client.search("pets", text="3", objects=True, min_score=0.25)[0]
    assert service.calls[-1][0].min_score == 0.25
    assert (hit.id, hit.mask.array.shape) == ("3", (6, 8))
    assert hit.box == hit.mask.box == (4, 0, 8, 6)
    whole = client.search("pets", text="3")[0]
    assert (whole.box, whole.mask) == (None, None)


@pytest.mark.parametrize("encoding", ["rle", "png", "polygons"])
def test_masks_of_every_encoding(client: samclip.Client, encoding: str) -> None:
    photo = client.image(png())
    (mask,) = photo.segment(boxes=[(3, 4, 10, 12)], encoding=encoding)
    assert mask.array.dtype == bool
    np.testing.assert_array_equal(mask, rectangle(3, 4, 10, 12))
    assert (mask.area, mask.box, mask.predicted_iou) == (56, (3, 4, 10, 12), 1.0)


def test_prompts(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    three = photo.segment([(5, 6)], negative=[(1, 2)], boxes=[(0, 0, 9, 9)], multimask=True)
    assert [mask.predicted_iou for mask in three] == [1.0, 0.75, 0.5]
    prompt = service.calls[-1][0].prompts[0]
    assert [(p.x, p.y, p.negative) for p in prompt.points] == [(5, 6, False), (1, 2, True)]
    assert prompt.box == pb.Box(x_max=9, y_max=9)

    one, other = photo.segment(boxes=[(0, 0, 4, 4), (2, 2, 9, 9)])
    assert (one.area, other.area) == (16, 49)
    assert photo.segment(text="a dog")[0].label == "a dog"
    assert not service.calls[-1][0].HasField("min_score")
    both = photo.segment(
        box=(0, 0, 4, 4),
        text=["a dog", "a cat"],
        not_texts="a wolf",
        min_score=0.25,
        exclusive=True,
    )
    assert [mask.label for mask in both] == ["a dog", "a cat"]
    request = service.calls[-1][0]
    assert (request.min_score, request.exclusive) == (0.25, True)
    assert [list(prompt.not_texts) for prompt in request.prompts] == [["a wolf"]] * 2
    assert all(prompt.box == pb.Box(x_max=4, y_max=4) for prompt in request.prompts)
    first, second = photo.segment_prompts(
        [samclip.Prompt(points=[(5, 6)]), samclip.Prompt(box=(0, 0, 4, 4))]
    )
    assert (first[0].area, second[0].area) == (30, 16)


def test_masks_of_one_thing_are_together(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    found = photo.segment(text=["a dog", "nothing", "two things"])
    assert [len(thing) for thing in found.things] == [1, 2, 1]
    (sizes,) = photo.segment((5, 6), multimask=True).things
    assert [mask.predicted_iou for mask in sizes] == [1.0, 0.75, 0.5]
    assert len(photo.everything().things) == len(photo.everything())


def test_examples(service: FakeService, client: samclip.Client) -> None:
    photo, other = client.image(png()), client.image(png(7))
    mask_HW = rectangle(3, 4, 10, 12)
    earlier = photo.segment(boxes=[(3, 4, 10, 12)])
    several = [
        samclip.Example(image=other, box=(1, 2, 5, 6)),
        samclip.Example(image=png(8), points=(5, 6), negative=True),
        samclip.Example(mask=mask_HW),
        *earlier,
    ]
    photo.segment(like=several, text=["a cup", "a mug"], box=(0, 0, 9, 9), min_score=0.5)
    request = service.calls[-1][0]
    assert [prompt.text for prompt in request.prompts] == ["a cup", "a mug"]
    assert request.prompts[0].examples == request.prompts[1].examples
    box, points, mask, same = request.prompts[0].examples
    assert box.box == pb.Box(x_min=1, y_min=2, x_max=5, y_max=6)
    assert (points.points.points, points.negative) == ([pb.Point(x=5, y=6)], True)
    assert mask.mask.counts == same.mask.counts == encode_rle(mask_HW)
    keys = [example.image.key for example in (box, points, mask, same)]
    assert keys == [other.key, image_key(png(8)), photo.key, photo.key]
    photo.segment(like=earlier[0])
    (prompt,) = service.calls[-1][0].prompts
    (example,) = prompt.examples
    assert example.image.key == photo.key
    assert example.mask.counts == encode_rle(mask_HW)


def test_a_lone_string_is_one_text(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    assert client.embed_text("cat").shape == (1, 4)
    assert [score.label for score in photo.classify("cat", templates="a {}.")] == ["cat"]
    assert list(service.calls[-1][0].templates) == ["a {}."]
    assert {mask.label for mask in photo.everything("cat")} == {"cat"}
    found = photo.semantic("cat")
    assert (found.labels, [region.label for region in found.regions]) == (("cat",), ["cat"])
    client.index("pets", {"cat": png(1), "a": png(2)})
    assert client.delete("pets", "cat") == 1
    assert [item.id for item in client.list_items("pets")] == ["a"]


def test_a_lone_point_or_box_is_one(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    for points in ((20, 6), [20, 6], np.array([20, 6]), [(20, 6)], np.array([[20, 6]])):
        photo.segment(points, negative=(1, 2))
        sent = [(p.x, p.y, p.negative) for p in service.calls[-1][0].prompts[0].points]
        assert sent == [(20, 6, False), (1, 2, True)]
    photo.segment_prompts([samclip.Prompt(points=(20, 6), negative=[(1, 2), (3, 4)])])
    assert [(p.x, p.y) for p in service.calls[-1][0].prompts[0].points] == [(20, 6), (1, 2), (3, 4)]
    lone = (3, 4, 10, 12)
    for boxes in ({"box": lone}, {"boxes": lone}, {"boxes": [lone]}, {"boxes": np.array(lone)}):
        assert [mask.area for mask in photo.segment(**boxes)] == [56]


BOX, OTHER = (0, 0, 4, 4), (2, 2, 9, 9)
UNKNOWN = "encoding is 'tiff': expected rle, png, polygons, logits"
POINT, PART = r"a point \(x, y\) has 2 numbers", "takes image=, and either box= or mask="
PLACE, TWO_PLACES = "exactly one of box=, points= and mask=", {"box": BOX, "points": (1, 2)}
WHICH = "pass ids to delete these images, or all=True alone"


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("classify_areas", {"labels": ["cat"]}, "no areas: pass boxes or masks"),
        ("classify_areas", {"labels": ["cat"], "masks": [np.zeros((4, 4))]}, "expected bool H×W"),
        ("segment", {"mask": np.zeros((4, 4))}, "a mask is float64 .4, 4.: expected bool H×W"),
        ("segment", {"mask": rectangle(*BOX), "boxes": [BOX, OTHER]}, "with points, a mask"),
        ("segment", {"points": [(1, 1)], "encoding": "tiff"}, UNKNOWN),
        ("everything", {"encoding": "tiff"}, UNKNOWN),
        ("semantic", {"labels": ["a"], "encoding": "tiff"}, UNKNOWN),
        ("everything", {"encoding": "panoptic"}, "call panoptic"),
        ("segment", {"points": [(1, 1)], "boxes": [BOX, OTHER]}, "segment_prompts"),
        ("segment", {"box": BOX, "boxes": [BOX]}, "both box and boxes"),
        *(("segment", {"points": one}, POINT) for one in ((1, 2, 3), [(1, 2), (3,)], ["ab"])),
        *(("segment", {"box": BOX, "text": one}, "a text is empty") for one in ([""], ["a", ""])),
        *(("segment", {"like": samclip.Example(**one)}, PLACE) for one in ({}, TWO_PLACES)),
        *(("segment", {"like": one}, r"samclip.Example\(image") for one in ("cup.jpg", BOX)),
        ("segment", {"like": samclip.Example(box=BOX), "boxes": [BOX, OTHER]}, "or like: give one"),
        ("search", {"text": "red", "id": "a"}, "exactly one"),
        ("search", {"image": png(), "box": BOX, "mask": rectangle(*BOX)}, PART),
        ("search", {"id": "a", "box": BOX}, PART),
        *(("delete", {"ids": nothing}, WHICH) for nothing in ([], (), "")),
        ("delete", {"ids": ["a"], "all": True}, WHICH),
    ],
)
def test_what_cannot_be_asked_is_refused_before_it_is_sent(
    service: FakeService, client: samclip.Client, method: str, arguments: Any, message: str
) -> None:
    asked = getattr(client.image(png()), method, None)
    with pytest.raises(ValueError, match=message):
        asked(**arguments) if asked else getattr(client, method)("pets", **arguments)
    assert not service.calls


def test_an_unknown_output_is_named(client: samclip.Client) -> None:
    with pytest.raises(ValueError, match="output is 'dino': expected sam, clip_dense"):
        client.image(png()).features("dino")


def test_logits_go_back_in(client: samclip.Client) -> None:
    photo = client.image(png())
    (logits,) = photo.segment([(5, 6), (7, 8)], encoding="logits")
    np.testing.assert_array_equal(logits, np.full((4, 4), 2, np.float32))
    for mask_input in (logits, logits.array):
        (again,) = photo.segment([(5, 6)], mask_input=mask_input, encoding="logits")
        np.testing.assert_array_equal(again, np.full((4, 4), 3, np.float32))


def test_a_rough_mask_is_sent_in_run_lengths(client: samclip.Client, service: FakeService) -> None:
    photo = client.image(png())
    (found,) = photo.segment(box=(3, 4, 10, 12))
    for mask in (found, found.array):
        photo.segment([(5, 6)], mask=mask)
        (prompt,) = service.calls[-1][0].prompts
        assert (prompt.mask.height, prompt.mask.width) == found.array.shape
        assert prompt.mask.counts.decode() == found.rle["counts"]
        assert len(prompt.points) == 1


def test_everything(client: samclip.Client) -> None:
    masks = client.image(png()).everything(["a", "b"], points_per_side=3)
    assert [mask.label for mask in masks] == ["a", "b", "a"]
    assert sum(mask.area for mask in masks) == WIDTH * HEIGHT


def test_a_vocabulary_instead_of_labels(client: samclip.Client, service: FakeService) -> None:
    masks = client.image(png()).everything(vocabulary="coco", min_label_score=0.2, tiles="auto")
    assert {mask.label for mask in masks} == {"a word of coco"}
    request, _ = service.calls[-1]
    assert (request.min_label_score, request.tiles) == (pytest.approx(0.2), -1)
    client.image(png()).everything()
    assert not service.calls[-1][0].HasField("min_label_score")


def test_a_stream_adds_up_to_everything(client: samclip.Client, service: FakeService) -> None:
    photo, shown = client.image(png()), {}
    updates = list(photo.stream_everything(["a", "b"], points_per_side=3))
    for update in updates:
        for number in update.withdrawn:
            del shown[number]
        shown |= update.found
    expected = photo.everything(["a", "b"], points_per_side=3)
    assert [mask.label for mask in shown.values()] == [mask.label for mask in expected]
    for mask, other in zip(shown.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.array, other.array)
    assert updates[-1].progress == 1
    assert photo.info.width == WIDTH
    assert service.uploads == [photo.key]
    assert list(next(iter(photo.stream_everything())).found) == [1]  # a stream may be left
    with pytest.raises(samclip.KeyUnknown, match="send the image"):
        next(iter(client.by_key("0" * 64).stream_everything()))


def test_a_panoptic_picture(client: samclip.Client) -> None:
    found = client.image(png()).panoptic(["a", "b"], points_per_side=3)
    np.testing.assert_array_equal(found.ids, 256 * (bands(HEIGHT, WIDTH, 3) + 1))
    segments = [(one.id, one.category_id, one.label) for one in found.segments]
    assert segments == [(256, 1, "a"), (512, 2, "b"), (768, 1, "a")]
    assert client.image(png()).panoptic().segments[0].category_id == 0


def test_semantic(client: samclip.Client) -> None:
    found = client.image(png()).semantic(["dog", "grass", "sky"], refine=True, background=True)
    expected_HW = bands(HEIGHT, WIDTH, 3)
    expected_HW[0] = -1
    np.testing.assert_array_equal(found.label_map, expected_HW)
    assert [region.label for region in found.regions] == list(found.labels)
    for index, region in enumerate(found.regions):
        np.testing.assert_array_equal(region.mask, expected_HW == index)
        assert (region.area, region.score) == (190, 0.75)
        assert (region.mask.label, region.mask.label_score) == (region.label, 0.75)


def test_explain(client: samclip.Client) -> None:
    photo = client.image(png())
    for others, high in (([], 1), ("cat", 0.5)):
        found = photo.explain("dog", others)
        assert (found.label, found.low, found.high) == ("dog", 0, high)
        expected_HW = bands(HEIGHT, WIDTH, 2)
        np.testing.assert_array_equal(found.levels, 255 * expected_HW)
        np.testing.assert_allclose(found.values, high * expected_HW, rtol=1e-6)


def test_label_maps_of_sixteen_bits(client: samclip.Client) -> None:
    wide = client.image(np.zeros((2, 600), np.uint8))
    found = wide.semantic([f"label {i}" for i in range(300)], background=True)
    np.testing.assert_array_equal(found.label_map[1], np.arange(600) // 2)
    np.testing.assert_array_equal(found.label_map[0], -1)


def test_embeddings(client: samclip.Client) -> None:
    photo = client.image(png())
    assert photo.embed().dtype == np.float32
    np.testing.assert_array_equal(photo.embed(), [0.5] * 4)
    shapes = {name: found.shape for name, found in photo.features("sam", "clip_dense").items()}
    assert shapes == {"sam": (4, 2, 3), "clip_dense": (4, 2, 3)}
    assert set(photo.features()) == {"sam", "clip_dense", "clip_pooled"}
    np.testing.assert_array_equal(client.embed_text(["a", "bb"]), np.eye(4)[[1, 2]])
    assert client.model == samclip.Model("fake", "d1935", "edge", "int8")


def test_collections(service: FakeService, client: samclip.Client) -> None:
    images = {f"photo-{i}": png(i) for i in range(70)} | {"bad": b"broken"}
    pairs = {"photo-3": {"owner": "ann"}}
    done = client.index("pets", images, metadata=pairs, thumbnails=False)
    assert (done.indexed, done.errors) == (70, {"bad": "not an image"})
    assert [len(request.items) for request, _ in service.calls] == [32, 32, 7]

    hits = client.search("pets", text="photo-3", top_k=2)
    assert (hits[0].id, hits[0].score, hits[0].metadata) == ("photo-3", 1.0, {"owner": "ann"})
    assert len(hits) == 2
    assert client.search("pets", id="photo-7")[0].id == "photo-7"
    assert len(client.search("pets", image=png(200))) == 10
    assert service.uploads[-1] == image_key(png(200))
    with pytest.raises(samclip.NotFound, match="no collection 'cars'"):
        client.search("cars", text="red")
    (hit,) = client.search("pets", text="x", filter={"owner": "ann"})
    assert hit.id == "photo-3"
    whole = [hit.id for hit in client.search("pets", text="x", top_k=70)]
    assert [hit.id for hit in client.search("pets", text="x", offset=65)] == whole[65:]
    assert client.list_items("pets", after="photo-29", limit=2) == [
        samclip.ListedItem("photo-3", {"owner": "ann"}),
        samclip.ListedItem("photo-30", {}),
    ]
    assert len(client.list_items("pets")) == 70

    assert client.describe() == [samclip.Collection("pets", 70, 4, "d1935", "int8")]
    assert client.delete("pets", ["photo-1"]) == 1
    assert client.describe()[0].count == 69
    assert client.delete("pets", all=True) == 69


def test_concepts(service: FakeService, client: samclip.Client) -> None:
    mask_HW = np.ones((30, 40), np.bool_)
    examples = [
        samclip.Example(png(1), box=(1, 2, 5, 6)),
        samclip.Example(png(2), mask=mask_HW, negative=True),
        samclip.Example(client.image(png(1)), points=[(3, 4)]),
    ]
    made = client.add_concept("my mug", examples)
    assert made == samclip.Concept("my mug", 3, "d1935")
    sent = service.calls[-1][0].examples
    assert [example.WhichOneof("place") for example in sent] == ["box", "mask", "points"]
    assert client.concepts() == [made]
    assert client.add_concept("my mug", examples[0]).examples == 1
    client.delete_concept("my mug")
    assert client.concepts() == []
    for places in ({}, {"box": (1, 2, 5, 6), "points": [(3, 4)]}):
        with pytest.raises(ValueError, match="exactly one of"):
            client.add_concept("x", [samclip.Example(png(1), **places)])


def test_requests_stay_below_the_message_limit(
    service: FakeService, client: samclip.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samclip.wire.CHUNK_BYTES", 3 * len(png()))
    client.index("pets", {str(i): png(i) for i in range(5)}, thumbnails=False)
    assert [len(request.items) for request, _ in service.calls] == [2, 2, 1]
    monkeypatch.setattr("samclip.wire.CHUNK_IDS", 3)
    assert client.delete("pets", [*"01234567"]) == 5
    deletions = [[*request.ids] for request, _ in service.calls[3:]]
    assert deletions == [[*"012"], [*"345"], [*"67"]]


def test_indexed_images_have_thumbnails(service: FakeService, client: samclip.Client) -> None:
    client.index("pets", {"one": png()}, metadata={"one": {"owner": "ann"}})
    metadata = service.collections["pets"]["one"].metadata
    assert metadata.pop("thumbnail").startswith("data:image/jpeg;base64,")
    assert metadata == {"owner": "ann"}


def test_a_thumbnail_is_upright_whatever_else_the_exif_data_say(
    service: FakeService, client: samclip.Client
) -> None:
    """A text as the resolution, a fraction: Pillow cannot write such data again."""
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x11A, 2, 4, b"abc")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (60, 30)).save(file, "JPEG", exif=exif)
    with Image.open(file) as image, pytest.raises((TypeError, struct.error)):
        ImageOps.exif_transpose(image)
    assert client.index("pets", {"one": file.getvalue()}).errors == {}
    made = service.collections["pets"]["one"].metadata["thumbnail"].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(made))) as picture:
        assert picture.size == (30, 60)


async def test_the_async_twin(server: Server) -> None:
    service, address = server
    async with samclip.AsyncClient(address) as client:
        photo = client.image(png())
        scores = await photo.classify(["cat", "horse"])
        assert scores[0].label == "horse"
        assert len(await photo.classify_areas(["cat"], boxes=[(1, 2, 5, 6)] * 2)) == 2
        (mask,), found, vector = await asyncio.gather(
            photo.segment(boxes=[(3, 4, 10, 12)]), photo.semantic(["a", "b"]), photo.embed()
        )
        np.testing.assert_array_equal(mask, rectangle(3, 4, 10, 12))
        np.testing.assert_array_equal(found.label_map, bands(HEIGHT, WIDTH, 2))
        np.testing.assert_array_equal(vector, [0.5] * 4)
        assert service.uploads == [photo.key]
        assert (await client.index("pets", {"a": photo})).indexed == 1
        assert [hit.id for hit in await client.search("pets", text="a")] == ["a"]
        with pytest.raises(samclip.NotFound):
            await client.search("cars", text="a")
        with pytest.raises(samclip.KeyUnknown):
            await client.by_key("0" * 64).everything()
        updates = [update async for update in client.image(png()).stream_everything()]
        assert updates[-1].progress == 1


def test_both_clients_have_the_same_methods() -> None:
    for blocking, waiting in (
        (samclip.Client, samclip.AsyncClient),
        (samclip.Photo, samclip.AsyncPhoto),
    ):
        public = {name for name in dir(waiting) if not name.startswith("_")}
        assert {name for name in dir(blocking) if not name.startswith("_")} == public
        for name in public:
            assert getattr(blocking, name).__doc__, name


def test_reprs(client: samclip.Client) -> None:
    photo = client.image(png())
    key = f"key {photo.key[:12]}…)"
    assert repr(photo) == f"Photo({len(png())} bytes, {key}"
    assert repr(client) == f"Client({client.address!r})"
    photo.embed()
    photo.name = "grey.png"
    assert repr(photo) == f"Photo('grey.png', {WIDTH}×{HEIGHT}, {len(png())} bytes, {key}"
    assert repr(client.by_key(photo.key)) == f"Photo({key}"
    assert repr(client) == f"Client({client.address!r}, fake d1935)"
    masks = photo.segment(text="a cat")
    shown = "Mask('a cat' 0.00, 0 pixels, box (0, 0, 0, 0), predicted IoU 1.00)"
    assert repr(masks) == f"Masks([{shown}])"
    several = repr(samclip.Masks([*masks] * 100))
    assert several.startswith(f"Masks([{shown}, {shown}, ")
    assert several.endswith(", … 100 masks])")
    assert len(several) < 300
    assert "bytes" not in repr(samclip.Example(png(), box=(1, 2, 5, 6)))


def test_the_text_of_a_hit_leaves_its_thumbnail_out(client: samclip.Client) -> None:
    metadata = {"owner": "ann", "thumbnail": "data:image/jpeg;base64," + "A" * 5000}
    client.index("greys", {"a": png()}, metadata={"a": metadata})
    (hit,) = client.search("greys", text="a")
    (item,) = client.list_items("greys")
    assert repr(hit) == "Hit(id='a', score=1.000, owner='ann')"
    assert repr(item) == "ListedItem(id='a', owner='ann')"
    assert hit.metadata == item.metadata == metadata


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda client, photo: photo.classify(5), r"expected texts, such as .*, found 5 \(int\)"),
        (lambda client, photo: photo.classify(["a", b"b"]), r"found b'b' \(bytes\)"),
        (
            lambda client, photo: photo.classify("a", top_k="5"),
            r"top_k is '5' \(str\): expected a w",
        ),
        (
            lambda client, photo: photo.semantic("a", refine="no"),
            "refine .* expected True or False",
        ),
        (lambda client, photo: photo.everything(points_per_side=2.5), "points_per_side is 2.5"),
        (
            lambda client, photo: photo.segment_prompts([5]),
            r"expected a samclip\.Prompt, found int",
        ),
        (lambda client, photo: client.search("x", text=5), r"text is 5 \(int\): expected a text"),
        (lambda client, photo: client.search("x", id="a", filter={"a": 1}), "texts under names"),
        (lambda client, photo: client.search("x", id="a", min_score="y"), "expected a number"),
        (lambda client, photo: client.index("x", {1: photo}), r"an id is 1 \(int\)"),
        (lambda client, photo: client.index("x", 5), "expected a folder, .* found int"),
        (lambda client, photo: client.index("x", {"a": photo}, metadata={"b": "c"}), "of each id"),
        (lambda client, photo: client.index("x", {"a": photo}, metadata=[]), "of each id"),
        (lambda client, photo: photo.show("a cat"), "expected masks, .* found str"),
        (lambda client, photo: client.image(5), "expected a path, .* found int"),
        (lambda client, photo: samclip.Client(9000), "the address is 9000: expected HOST:PORT"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(
    client: samclip.Client, service: FakeService, ask: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ask(client, client.image(png()))
    assert not service.calls
