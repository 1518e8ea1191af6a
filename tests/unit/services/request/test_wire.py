"""Messages become the library's values, and its answers become messages."""

import numpy as np
import pytest
from samclip import wire as client_wire
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import ImageTooLarge, InvalidImage, InvalidPrompt, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.io import masks
from samclip_core.types import EverythingMask, MaskLogits, Region, SemanticMap
from services.cache.entry import Entry
from services.request import wire

GEOMETRY = Geometry(30, 40, 32)
MASK = np.zeros((30, 40), np.bool_)
MASK[5:10, 7:20] = True
MASK[6, 8] = False


def test_an_image_is_its_file_or_its_key():
    assert wire.image_source(pb.Image(encoded=b"abc"), 3) == b"abc"
    assert wire.image_source(pb.Image(key="k"), 3) == "k"
    for image, error, message in (
        (pb.Image(key="k" * 65), InvalidImage, "has 65 characters"),
        (pb.Image(), InvalidImage, "the image is empty"),
        (pb.Image(encoded=b""), InvalidImage, "the image is empty"),
        (pb.Image(encoded=b"abcd"), ImageTooLarge, "4 bytes, at most 3"),
    ):
        with pytest.raises(error, match=message):
            wire.image_source(image, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_tensors_round_trip(dtype):
    array = (np.arange(24).reshape(2, 3, 4) - 5).astype(dtype)
    tensor = wire.to_tensor(array.transpose(1, 0, 2), "SAM")
    assert (tensor.name, tensor.dtype, list(tensor.shape)) == ("SAM", dtype, [3, 2, 4])
    np.testing.assert_array_equal(wire.from_tensor(tensor), array.transpose(1, 0, 2))
    empty = wire.to_tensor(array, inline=False)
    assert (list(empty.shape), empty.data) == ([2, 3, 4], b"")
    assert wire.to_tensor(np.array([1.0], ">f4")).data == b"\x00\x00\x80\x3f"  # little-endian


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pb.Tensor(dtype="object", shape=[1], data=b"x"), "dtype 'object'"),
        (pb.Tensor(dtype="float32", shape=[2, 2], data=b"1234"), "needs 16 bytes, got 4"),
        (pb.Tensor(dtype="float32", shape=[-1, -1], data=b"1234"), "needs 4 bytes"),
        (pb.Tensor(dtype="float32", shape=[0, 2**62]), "is invalid"),
        (pb.Tensor(dtype="float32", shape=[1] * 100, data=b"1234"), "100 dimensions, at most 8"),
        (pb.Tensor(dtype="float32", shape=[2**40, 2**40], data=b"1234"), "got 4"),
        (pb.Tensor(dtype="float32", shape=[2**62] * 1_000_000, data=b"1234"), "1000000 dimensions"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(tensor, message):
    with pytest.raises(InvalidRequest, match=message):
        wire.from_tensor(tensor)


def test_outputs_are_each_once_in_order_and_all_by_default():
    assert wire.to_outputs([pb.CLIP_POOLED, pb.SAM, pb.CLIP_POOLED]) == (pb.CLIP_POOLED, pb.SAM)
    assert wire.to_outputs([]) == (pb.SAM, pb.CLIP_DENSE, pb.CLIP_POOLED)
    with pytest.raises(InvalidRequest, match="output 0 is unknown"):
        wire.to_outputs([pb.OUTPUT_UNSPECIFIED])
    with pytest.raises(InvalidRequest, match="65 outputs, at most 64: name each once"):
        wire.to_outputs([pb.SAM] * 65)


def test_features_come_back_from_an_embed_response():
    sam, pooled = np.ones((4, 2, 2), np.float16), np.full(4, 0.5, np.float16)
    response = pb.EmbedResponse(
        image=wire.image_info("k", GEOMETRY, True),
        tensors=[wire.to_tensor(sam, "SAM"), wire.to_tensor(pooled, "CLIP_POOLED")],
    )
    features = wire.to_features(wire.to_entries(response, 32), "int8")
    assert features.dtype == "int8"
    assert features.geometry == GEOMETRY
    assert features.clip_dense_Dhw is None
    np.testing.assert_array_equal(features.sam_Dhw, sam)
    np.testing.assert_array_equal(features.clip_pooled_D, pooled)


@pytest.mark.parametrize("length", [0.998, 1.002])
def test_a_pooled_embedding_that_lost_its_length_is_read_with_length_1(length):
    direction = np.random.default_rng(0).normal(size=64)
    stored = (length * direction / np.linalg.norm(direction)).astype(np.float16)
    entry = Entry(stored, GEOMETRY)
    features = wire.to_features({pb.CLIP_POOLED: entry}, "float32")
    assert np.linalg.norm(features.clip_pooled_D) == pytest.approx(1, abs=1e-6)
    sent = wire.from_tensor(wire.to_embedding(pb.CLIP_POOLED, entry, inline=True))
    assert sent.dtype == np.float16
    assert np.linalg.norm(sent.astype(np.float32)) == pytest.approx(1, abs=2e-4)
    assert not wire.to_embedding(pb.CLIP_POOLED, entry, inline=False).data


def test_prompts_keep_points_box_and_mask_input():
    logits = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    prompt = wire.to_prompt(
        pb.Prompt(
            points=[pb.Point(x=1.5, y=2), pb.Point(x=3, y=4, negative=True)],
            box=pb.Box(x_max=5, y_max=6),
            mask_input=wire.to_tensor(logits.astype(np.float16)),
        )
    )
    assert prompt.points == ((1.5, 2), (3, 4))
    assert prompt.negative == (False, True)
    assert prompt.box == (0, 0, 5, 6)
    assert prompt.mask_input_hw.dtype == np.float32
    np.testing.assert_allclose(prompt.mask_input_hw, logits, atol=1e-3)
    click = wire.to_prompt(pb.Prompt(points=[pb.Point()]))
    assert (click.box, click.mask_input_hw) == (None, None)
    with pytest.raises(InvalidPrompt, match="mask_input: tensor has dtype"):
        wire.to_prompt(pb.Prompt(mask_input=pb.Tensor(dtype="f8")))


def test_a_text_keeps_what_is_not_wanted_and_where_it_is():
    alone = wire.to_text_prompt(pb.Prompt(text="dog", not_texts=["cat", "wolf"]))
    assert (alone.text, alone.not_texts, alone.where) == ("dog", ("cat", "wolf"), None)
    placed = wire.to_text_prompt(pb.Prompt(text="dog", points=[pb.Point(x=1, y=2, negative=True)]))
    assert (placed.where.points, placed.where.negative) == (((1, 2),), (True,))
    assert wire.to_text_prompt(pb.Prompt(text="dog", box=pb.Box(x_max=3))).where.box == (0, 0, 3, 0)


def read(mask: pb.Mask) -> np.ndarray:
    return client_wire.mask(mask, pb.ImageInfo(width=40, height=30), b"").array


@pytest.mark.parametrize("encoding", [pb.RLE, pb.PNG, pb.POLYGONS])
@pytest.mark.parametrize("mask_HW", [MASK, np.zeros_like(MASK), np.ones_like(MASK)])
def test_masks_survive_every_encoding(mask_HW, encoding):
    message = wire.to_mask(mask_HW, encoding)
    assert message.WhichOneof("data") == pb.MaskEncoding.Name(encoding).lower()
    np.testing.assert_array_equal(read(message), mask_HW)
    assert message.area == mask_HW.sum()
    box = (message.box.x_min, message.box.y_min, message.box.x_max, message.box.y_max)
    assert box == masks.mask_box(mask_HW)


def test_logits_only_where_there_are_some():
    with pytest.raises(InvalidRequest, match="no logits"):
        wire.to_mask(MASK, pb.LOGITS)
    logits = np.ones((8, 8), np.float32)
    message = wire.to_mask(MASK, pb.LOGITS, logits)
    np.testing.assert_array_equal(wire.from_tensor(message.logits), logits)
    assert message.area == MASK.sum()


def test_prompt_masks_keep_the_order_and_the_scores():
    logits = np.full((2, 8, 8), -4.0, np.float32)
    logits[0, :4, :4] = logits[1, 3, 3] = 4
    found = MaskLogits(GEOMETRY, logits, np.array([0.9, 0.5], np.float32), 0.0)
    whole = found.enlarge_all()
    messages = list(wire.to_prompt_masks(found, pb.RLE))
    for index, message in enumerate(messages):
        assert message.predicted_iou == pytest.approx(found.predicted_iou_M[index])
        assert message.stability_score == pytest.approx(whole.stability_M[index])
        np.testing.assert_array_equal(read(message), whole.masks_MHW[index])
    assert messages[0].area > messages[1].area > 0


def test_prompt_masks_are_enlarged_one_by_one(monkeypatch):
    enlarged = []
    found = MaskLogits(GEOMETRY, np.ones((3, 8, 8), np.float32), np.ones(3, np.float32), 0.0)
    enlarge = MaskLogits.enlarge
    monkeypatch.setattr(
        MaskLogits, "enlarge", lambda self, index: enlarged.append(index) or enlarge(self, index)
    )
    next(wire.to_prompt_masks(found, pb.RLE))
    assert enlarged == [0]


def test_everything_masks_have_names():
    logits = np.full((8, 8), -1.0, np.float32)
    logits[:4, :4] = 1
    found = EverythingMask(GEOMETRY, logits, 0.9, 0.5, "dog", 0.75)
    mask = wire.to_everything_mask(found, pb.RLE)
    assert (mask.label, mask.label_score, mask.stability_score) == ("dog", 0.75, 0.5)
    np.testing.assert_array_equal(read(mask), found.mask_HW)


def test_regions_in_every_encoding():
    label_map = np.where(MASK, 1, -1).astype(np.int16)
    region = Region("cat", 0.5, 1, int(MASK.sum()), label_map)
    found = SemanticMap(label_map, (region,))
    for encoding in (pb.RLE, pb.PNG, pb.POLYGONS):
        (message,) = wire.to_regions(found, encoding)
        assert (message.label, message.score, message.area) == ("cat", 0.5, MASK.sum())
        expected = wire.to_mask(MASK, encoding)
        expected.label, expected.label_score = "cat", 0.5
        assert message.mask == expected
