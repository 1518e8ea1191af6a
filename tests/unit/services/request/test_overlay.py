import io

import numpy as np
from PIL import Image
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.masks import encode_label_map
from services.request import overlay

LABEL_MAP_HW = np.array([[0, 0, 1], [-1, -1, 1]])


def request(encoded: bytes = b"") -> pb.SegmentTextRequest:
    image = pb.Image(encoded=encoded) if encoded else pb.Image(key="k")
    return pb.SegmentTextRequest(image=image, labels=["a", "b"])


def drawn(asked: pb.SegmentTextRequest) -> Image.Image:
    answer = pb.SegmentTextResponse(label_map_png=encode_label_map(LABEL_MAP_HW, 2))
    return Image.open(io.BytesIO(overlay.draw(asked, answer)))


def test_without_the_image_it_is_transparent_where_no_label_is() -> None:
    picture_HW4 = np.asarray(drawn(request()))
    assert picture_HW4.shape == (2, 3, 4)
    assert tuple(picture_HW4[0, 0, :3]) == overlay.colour(0)
    assert tuple(picture_HW4[1, 2, :3]) == overlay.colour(1)
    assert np.array_equal(picture_HW4[..., 3] > 0, LABEL_MAP_HW >= 0)


def test_over_the_image_background_stays_as_it_is() -> None:
    file = io.BytesIO()
    grey_HW3 = np.full((2, 3, 3), 90, np.uint8)
    Image.fromarray(grey_HW3).save(file, "PNG")
    picture_HW3 = np.asarray(drawn(request(file.getvalue())))
    assert picture_HW3.shape == (2, 3, 3)
    assert np.array_equal(picture_HW3[1, :2], grey_HW3[1, :2])
    mixed = (1 - overlay.OPACITY) * 90 + overlay.OPACITY * np.array(overlay.colour(0))
    assert np.allclose(picture_HW3[0, 0], mixed, atol=1.5)


def test_many_labels_have_colours_of_their_own() -> None:
    assert len({overlay.colour(index) for index in range(100)}) == 100
