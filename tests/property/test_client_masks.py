"""The client decodes every mask that the service encodes, without the service's libraries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from samclip import masks as reader

from samclip_core.io import masks as writer
from tests.property.test_masks import any_mask, shapes


@given(mask_HW=any_mask)
def test_rle(mask_HW: np.ndarray) -> None:
    official = coco.encode(np.asfortranarray(mask_HW, np.uint8))["counts"]
    for counts in (writer.encode_rle(mask_HW), official):
        np.testing.assert_array_equal(reader.decode_rle(counts, *mask_HW.shape), mask_HW)


@given(mask_HW=any_mask)
def test_rle_is_written_as_the_service_writes_it(mask_HW: np.ndarray) -> None:
    assert reader.encode_rle(mask_HW) == writer.encode_rle(mask_HW)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (600, 900)])
@pytest.mark.parametrize("value", [False, True])
def test_rle_with_long_runs(shape: tuple[int, int], value: bool) -> None:
    mask_HW = np.full(shape, value)
    counts = writer.encode_rle(mask_HW)
    np.testing.assert_array_equal(reader.decode_rle(counts, *shape), mask_HW)
    assert reader.encode_rle(mask_HW) == counts


def test_rle_of_another_size_is_refused() -> None:
    counts = writer.encode_rle(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="do not fill 5×4 pixels"):
        reader.decode_rle(counts, 4, 5)


@given(mask_HW=any_mask)
def test_png(mask_HW: np.ndarray) -> None:
    np.testing.assert_array_equal(reader.decode_png(writer.encode_png(mask_HW)), mask_HW)


@given(mask_HW=any_mask)
def test_packed_bits(mask_HW: np.ndarray) -> None:
    packed = writer.pack_bits(mask_HW)
    np.testing.assert_array_equal(reader.unpack_bits(packed, *mask_HW.shape), mask_HW)


@given(mask_HW=any_mask)
def test_polygons(mask_HW: np.ndarray) -> None:
    rings = writer.encode_polygons(mask_HW)
    np.testing.assert_array_equal(reader.decode_polygons(rings, *mask_HW.shape), mask_HW)


@given(mask_HW=any_mask)
def test_traced_polygons_are_exact_and_those_of_the_service(mask_HW: np.ndarray) -> None:
    rings = reader.encode_polygons(mask_HW)
    assert all(ring.dtype == np.float32 and ring.shape[1] == 2 for ring in rings)
    flat = [ring.reshape(-1) for ring in rings]
    np.testing.assert_array_equal(reader.decode_polygons(flat, *mask_HW.shape), mask_HW)
    expected = writer.encode_polygons(mask_HW)
    assert sorted(map(_turned, flat)) == sorted(map(_turned, expected))


def _turned(ring: np.ndarray) -> list[tuple[float, float]]:
    """Return a ring's vertices in its own direction, from the smallest one on."""
    points = [(float(x), float(y)) for x, y in ring.reshape(-1, 2)]
    start = points.index(min(points))
    return points[start:] + points[:start]


@given(
    ring=arrays(np.float32, st.integers(3, 8).map(lambda n: 2 * n), elements=st.integers(-20, 60))
)
def test_slanted_polygons(ring: np.ndarray) -> None:
    # No vertex or edge may pass through a pixel's centre.
    rings = [ring * np.float32(0.51) + np.tile([0.013, 0.0], len(ring) // 2)]
    np.testing.assert_array_equal(
        reader.decode_polygons(rings, 20, 24), writer.decode_polygons(rings, 20, 24)
    )


@given(
    label_map_HW=arrays(np.int32, shapes, elements=st.integers(-1, 253)),
    labels=st.sampled_from([254, 255, 3000]),
)
def test_label_map(label_map_HW: np.ndarray, labels: int) -> None:
    png = writer.encode_label_map(label_map_HW, labels)
    np.testing.assert_array_equal(reader.decode_label_map(png), label_map_HW)


@pytest.mark.parametrize("ring", [[0, 0, 1], [0, 0, np.nan, 1], [0, 0, np.inf, 1]])
def test_rings_that_are_none_are_refused(ring: list[float]) -> None:
    with pytest.raises(ValueError, match="odd number of coordinates or one that is not finite"):
        reader.decode_polygons([np.array(ring, np.float32)], 4, 4)
