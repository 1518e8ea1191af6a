"""Every mask codec is lossless for any mask: the client reads what the service writes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from samclip import mask_codecs

from samclip_core.io import masks

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
noise = arrays(np.bool_, shapes)


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """Draw a mask of XORed rectangles: with parts, holes, and islands in holes."""
    mask_HW = np.zeros(draw(st.tuples(st.integers(1, 60), st.integers(1, 60))), np.bool_)
    corner = st.integers(0, 60)
    for x0, y0, x1, y1 in draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=8)):
        mask_HW[min(y0, y1) : max(y0, y1), min(x0, x1) : max(x0, x1)] ^= True
    return mask_HW


any_mask = noise | blobs()


@settings(max_examples=200)
@given(mask_HW=any_mask)
def test_every_codec_is_lossless(mask_HW: np.ndarray) -> None:
    check_rle(mask_HW)
    check_box(mask_HW)
    np.testing.assert_array_equal(
        mask_codecs.decode_levels(masks.encode_png(mask_HW)) > 127, mask_HW
    )
    rings = mask_codecs.encode_polygons(mask_HW)
    assert all(ring.dtype == np.float32 and ring.shape[1] == 2 for ring in rings)
    flat = [ring.reshape(-1) for ring in rings]
    np.testing.assert_array_equal(mask_codecs.decode_polygons(flat, *mask_HW.shape), mask_HW)
    assert sum(signed_area(ring) for ring in rings) == mask_HW.sum()


def check_rle(mask_HW: np.ndarray) -> None:
    """Assert that RLEs are byte for byte those of pycocotools, and runs those of the mask."""
    counts = coco.encode(np.asfortranarray(mask_HW, np.uint8))["counts"]
    assert masks.encode_rle(mask_HW) == mask_codecs.encode_rle(mask_HW) == counts
    np.testing.assert_array_equal(mask_codecs.decode_rle(counts, *mask_HW.shape), mask_HW)
    decoded, found = masks.decode_runs(counts, *mask_HW.shape), masks.find_runs(mask_HW)
    np.testing.assert_array_equal(decoded.start_K, found.start_K)
    np.testing.assert_array_equal(decoded.end_K, found.end_K)
    offsets = np.arange(mask_HW.size + 1)
    before = np.append(0, mask_HW.T.reshape(-1).cumsum())
    np.testing.assert_array_equal(found.pixels_before(offsets), before)


def check_box(mask_HW: np.ndarray) -> None:
    """Assert that the box of a mask is tight."""
    x_min, y_min, x_max, y_max = (int(value) for value in masks.mask_box(mask_HW))
    inside = mask_HW[y_min:y_max, x_min:x_max]
    assert inside.sum() == mask_HW.sum()
    if inside.size:
        edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
        assert all(edge.any() for edge in edges)


@given(counts=st.binary(max_size=12) | st.text("0123456789:;<=>?@PQ_`ano", max_size=12))
def test_an_rle_of_any_origin_fills_its_mask_or_is_refused(counts: bytes | str) -> None:
    encoded = counts.encode() if isinstance(counts, str) else counts
    try:
        runs = masks.decode_runs(encoded, 3, 4)
    except ValueError:
        return
    bounds = np.stack([runs.start_K, runs.end_K], axis=1).reshape(-1)
    assert (np.diff(bounds) >= 0).all()
    assert (bounds >= 0).all()
    assert (bounds <= 12).all()
    official = coco.decode({"size": [3, 4], "counts": encoded})
    np.testing.assert_array_equal(runs.pixels_before(np.array([12])), [official.sum()])


def write_counts(counts: list[int]) -> bytes:
    """Encode counts of any size as COCO's compressed RLE."""
    characters = []
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        while not -16 <= left < 16:
            characters.append((left & 31 | 32) + 48)
            left >>= 5
        characters.append((left & 31) + 48)
    return bytes(characters)


def test_counts_whose_sum_overflows_are_refused():
    rising = [size << 37 for size in range(1, 2**13)]
    sizes = [*rising, 2**50, *rising[::-1]]
    counts = [0, 0, 0, *(size for size in sizes for _ in range(2)), 16]
    assert sum(counts) == 2**64 + 16
    with pytest.raises(ValueError, match="do not fill 4×4"):
        masks.decode_runs(write_counts(counts), 4, 4)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "not COCO's"),
        (b"0P", "not COCO's"),
        (b"4 8", "not COCO's"),
        (b"44", "do not fill 4×4 pixels"),
        (b"4440O4", "do not fill"),
        (b"oooo4", "do not fill"),
        (b"o" * 20 + b"4", "too large"),
    ],
)
def test_a_broken_rle_is_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.decode_runs(counts, 4, 4)


@given(label_map_HW=arrays(np.int16, shapes, elements=st.integers(-1, 4)))
def test_the_runs_of_a_label_are_those_of_its_mask(label_map_HW: np.ndarray) -> None:
    runs = masks.LabelRuns(label_map_HW)
    for label in range(6):
        mask_HW = label_map_HW == label
        expected = coco.encode(np.asfortranarray(mask_HW, np.uint8))["counts"]
        assert masks.encode_runs(runs.of(label)) == expected
        assert runs.of(label).box == masks.mask_box(mask_HW)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("inside", [False, True])
def test_rle_of_masks_that_are_lines_or_nothing(shape: tuple[int, int], inside: bool) -> None:
    mask_HW = np.full(shape, inside)
    expected = coco.encode(np.asfortranarray(mask_HW, np.uint8))["counts"]
    assert masks.encode_rle(mask_HW) == expected
    assert masks.encode_rle(mask_HW.T) == masks.encode_rle(mask_HW.T.copy())


def signed_area(ring_K2: np.ndarray) -> float:
    """Return the signed area of a ring, positive if it is clockwise with y pointing down."""
    x_K, y_K = ring_K2.T.astype(np.float64)
    return float((x_K * np.roll(y_K, -1) - np.roll(x_K, -1) * y_K).sum() / 2)


@given(
    label_map_HW=arrays(np.int32, shapes, elements=st.integers(-1, 253)),
    labels=st.sampled_from([254, 255, 3000]),
)
def test_label_maps(label_map_HW: np.ndarray, labels: int) -> None:
    encoded = masks.encode_label_map(label_map_HW, labels)
    for codecs in (masks, mask_codecs):
        np.testing.assert_array_equal(codecs.decode_label_map(encoded), label_map_HW)
