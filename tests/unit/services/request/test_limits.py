"""What is over a limit is refused with the limit, and what is within it passes."""

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidLabels, InvalidPrompt, InvalidRequest
from samclip_core.geometry import Crop, Geometry
from services.request import limits
from services.settings import Settings

POINT = pb.Prompt(points=[pb.Point(x=1, y=1)])


def test_image_limits_are_the_settings():
    found = limits.image_limits(Settings(max_image_bytes=10, max_image_pixels=20))
    assert (found.max_bytes, found.max_pixels) == (10, 20)


LONG_TEMPLATE = "template 0 with the longest label makes more than 2000 characters"
OVER = {
    InvalidRequest: [
        (limits.check_images, ([], 2), "no image"),
        (limits.check_images, ([1, 2, 3], 2), "3 images in one request, at most 2: send fewer"),
        (limits.check_metadata, ({"a": "bc", "ä": ""}, 4), "the metadata has 5 bytes, at most 4"),
        (limits.check_range, ("top_k", -1, 10), "top_k is -1, expected 0 to 10"),
        (limits.check_offset, (-1, 10), "offset is -1, expected 0 to 9990"),
        (limits.check_offset, (9991, 10), "offset is 9991, expected 0 to 9990"),
        (limits.check_listing, (pb.ListItemsRequest(limit=-1),), "limit is -1"),
        (limits.check_range, ("points", 65, 64, " (0: all)"), "0 to 64 (0: all)"),
        (limits.check_encoding, (pb.AskRequest(encoding=9),), "mask encoding 9 is unknown"),
    ],
    InvalidLabels: [
        (limits.check_labels, ([], 2), "no labels"),
        (limits.check_labels, (["a", "b", "c"], 2), "3 labels, at most 2"),
        (limits.check_labels, (["a", " \t"], 2), "label 1 is empty"),
        (limits.check_labels, (["a" * 1001], 2), "label 0 has 1001 characters"),
        (limits.check_texts, ([], 2), "no texts"),
        (limits.check_texts, (["a"] * 33, 2), "33 texts, at most 32"),
        (limits.check_texts, (["a", "a" * 2001], 2), "text 1 has 2001 characters"),
        (limits.check_text, ("", "the text"), "the text is empty"),
        (limits.check_templates, (["{}" * 500], ["a", "a" * 5], 2), LONG_TEMPLATE),
        (limits.check_templates, (["a {}.", "plain"], ["x"], 2), "template 1 is 'plain': it needs"),
        (limits.check_templates, (["{}"] * 20, ["a", "b"], 2), "make 40 texts, at most 32"),
    ],
    InvalidPrompt: [
        (limits.check_prompts, ([], 2), "no prompts"),
        (limits.check_prompts, ([POINT] * 3, 2), "3 prompts in one request"),
        (
            limits.check_prompts,
            ([POINT, pb.Prompt(points=[pb.Point()] * 3)], 2),
            "prompt 1 has 3 points, at most 2",
        ),
        (
            limits.check_prompts,
            ([pb.Prompt(text="a", not_texts=["b"] * 3)], 2),
            "prompt 0 has 3 not_texts, at most 2",
        ),
    ],
}


@pytest.mark.parametrize(
    ("error", "check", "arguments", "message"),
    [(error, *row) for error, rows in OVER.items() for row in rows],
)
def test_what_is_over_a_limit_is_refused_with_the_limit(error, check, arguments, message):
    with pytest.raises(error) as caught:
        check(*arguments)
    assert message in str(caught.value)


def test_what_is_just_within_the_limits_passes():
    assert limits.check_images([1, 2], 2) is None
    assert limits.check_labels(["a" * 1000, "b"], 2) is None
    assert limits.check_templates(["{}"] * 16, ["a", "b"], 2) is None
    assert limits.check_prompts([POINT, POINT], 2) is None
    assert limits.check_offset(9990, 10) is None
    assert limits.check_listing(pb.ListItemsRequest(limit=10_000)) is None
    assert limits.check_metadata({"a": "bc", "ä": ""}, 5) is None
    assert limits.check_templates(["{}" * 500], ["a" * 4], 2) is None
    for encoding in (0, 1, 2, 4):
        limits.check_encoding(pb.AskRequest(encoding=encoding))


FOUR_MEGAPIXELS = Geometry(2048, 2048, 384)


@pytest.mark.parametrize("encoding", pb.MaskEncoding.values())
def test_a_mask_for_each_of_1024_labels_of_a_photograph_is_admitted(encoding):
    limits.check_mask_pixels(1024, FOUR_MEGAPIXELS, encoding)


@pytest.mark.parametrize(
    ("count", "geometry", "encoding", "message"),
    [
        (768, Geometry(8000, 8000, 384), pb.RLE, "send a smaller image, or fewer prompts"),
        (1025, FOUR_MEGAPIXELS, pb.PNG, "as PNG are 4,299,161,600 pixels, at most 4,294,967,296"),
        (1024, Geometry(8000, 8000, 384), pb.PNG, "or choose RLE"),
        (1024, Geometry(8000, 8000, 384), pb.POLYGONS, "1,024 masks of 8000×8000 pixels"),
    ],
)
def test_masks_of_too_many_pixels_are_refused(count, geometry, encoding, message):
    with pytest.raises(InvalidRequest, match=message):
        limits.check_mask_pixels(count, geometry, encoding)


@pytest.mark.parametrize(
    ("most", "geometry", "encoding"),
    [
        (320, Geometry(480, 640, 512), pb.LOGITS),
        (2048, FOUR_MEGAPIXELS, pb.RLE),
        (256, FOUR_MEGAPIXELS, pb.PNG),
    ],
)
def test_masks_that_fit_one_answer_are_admitted_whatever_they_show(most, geometry, encoding):
    limits.check_masks(most, geometry, encoding, 256)
    with pytest.raises(InvalidRequest, match="at most"):
        limits.check_masks(10 * most, geometry, encoding, 256)


def test_64_images_and_256_areas_have_scores():
    labels = [f"label {number}" for number in range(1024)]
    limits.check_scores(64, labels, 0)
    limits.check_scores(256, labels, 500)
    with pytest.raises(InvalidRequest, match="262,144 scores, 1,024 for each of 256"):
        limits.check_scores(256, labels, 0)
    with pytest.raises(InvalidRequest, match="with a smaller top_k"):
        limits.check_scores(64, ["é" * 1000, *labels[1:]], 0)
    with pytest.raises(InvalidRequest, match="with a smaller top_k"):  # six characters each
        limits.check_scores(16, ["\x01" * 1000, *labels[1:]], 0)


def test_an_answer_ends_at_the_part_that_is_too_much():
    answer = limits.Reply()
    answer.add(limits.MAX_REPLY_BYTES - 2 * 1002)
    mask = pb.Mask(png=bytes(1000 - 3))
    made = iter([mask] * 4)
    with pytest.raises(InvalidRequest, match="the answer would have"):
        [*answer.within(made)]
    assert [*made] == [mask]


RINGS = pb.Mask(polygons=pb.Polygons(polygons=[pb.Polygon(xy=[1.0] * 1000)]))
PAIRS = {f"{number:x}": "" for number in range(1300)}
ESCAPED = {"text": "\x01" * 4000}


@pytest.mark.parametrize(
    ("part", "counted"),
    [
        (RINGS, 32_000),  # values that become objects
        (pb.Region(mask=RINGS), 32_000),
        (pb.Hit(metadata=PAIRS), 1300 * 32),
        (pb.ListedItem(metadata=PAIRS), 1300 * 32),
        (pb.Hit(metadata=ESCAPED), 20_000),  # a control character becomes six
        (pb.ListedItem(metadata=ESCAPED), 20_000),
        (pb.Hit(metadata=ESCAPED, mask=pb.Mask(png=bytes(10_000))), 20_000),
    ],
)
def test_what_becomes_more_in_json_counts_more_than_its_bytes(part, counted):
    answer = limits.Reply()
    [*answer.within([part])]
    assert answer._size - part.ByteSize() == pytest.approx(counted, rel=0.3)
    assert answer._size > 1.9 * part.ByteSize()


def test_masks_of_hits_in_tiles_count_as_large_as_their_pictures() -> None:
    crop = Crop(100, 100, 500, 500, picture_height=8000, picture_width=8000)
    limits.check_hit_pixels([crop] * 100)
    with pytest.raises(InvalidRequest, match="200 hits have 12,800,000,000 pixels"):
        limits.check_hit_pixels([crop] * 200)
