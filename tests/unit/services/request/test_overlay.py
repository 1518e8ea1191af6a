"""Maps are drawn over the image, or transparent without it."""

import io

import numpy as np
from PIL import Image
from samclip.drawing import HEAT_256_3, colour
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.masks import encode_label_map, write_png
from services.request import overlay

LABEL_MAP_HW = np.array([[0, 0, 1], [-1, -1, 1]])


def request(encoded: bytes = b"") -> pb.SegmentTextRequest:
    image = pb.Image(encoded=encoded) if encoded else pb.Image(key="k")
    return pb.SegmentTextRequest(image=image, labels=["a", "b"])


def drawn(asked: pb.SegmentTextRequest) -> Image.Image:
    answer = pb.SegmentTextResponse(label_map_png=encode_label_map(LABEL_MAP_HW, 2))
    return Image.open(io.BytesIO(overlay.draw_labels(asked, answer)))


def test_without_the_image_it_is_transparent_where_no_label_is() -> None:
    picture_HW4 = np.asarray(drawn(request()))
    assert picture_HW4.shape == (2, 3, 4)
    assert tuple(picture_HW4[0, 0, :3]) == colour(0)
    assert tuple(picture_HW4[1, 2, :3]) == colour(1)
    assert np.array_equal(picture_HW4[..., 3] > 0, LABEL_MAP_HW >= 0)


def test_over_the_image_background_stays_as_it_is() -> None:
    file = io.BytesIO()
    grey_HW3 = np.full((2, 3, 3), 90, np.uint8)
    Image.fromarray(grey_HW3).save(file, "PNG")
    picture_HW3 = np.asarray(drawn(request(file.getvalue())))
    assert picture_HW3.shape == (2, 3, 3)
    assert np.array_equal(picture_HW3[1, :2], grey_HW3[1, :2])
    mixed = (1 - overlay.OPACITY) * 90 + overlay.OPACITY * np.array(colour(0))
    assert np.allclose(picture_HW3[0, 0], mixed, atol=1.5)


def test_heat_covers_the_image() -> None:
    levels_HW = np.array([[0, 128, 255]], np.uint8)
    answer = pb.ExplainResponse(heat_png=write_png(levels_HW))
    file = io.BytesIO()
    Image.new("RGB", (3, 1), (90, 90, 90)).save(file, "PNG")
    for image, below in ((pb.Image(encoded=file.getvalue()), 90), (pb.Image(key="k"), None)):
        drawn = overlay.draw_heat(pb.ExplainRequest(image=image, label="a"), answer)
        picture_HWC = np.asarray(Image.open(io.BytesIO(drawn)))
        colours_13 = HEAT_256_3[levels_HW]
        if below is None:
            np.testing.assert_array_equal(picture_HWC[..., :3], colours_13)
            assert (picture_HWC[..., 3] == round(255 * overlay.OPACITY)).all()
        else:
            mixed = (1 - overlay.OPACITY) * below + overlay.OPACITY * colours_13
            assert np.allclose(picture_HWC, mixed, atol=0.6)
