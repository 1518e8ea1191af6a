"""What a photograph may be, and how often it is sent."""

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
import samclip
from PIL import Image

from samclip_core.io.image import image_key
from tests.fake_server import FakeService
from tests.unit.client.picture import HEIGHT, WIDTH, png


def test_a_photograph_is_sent_once(service: FakeService, client: samclip.Client) -> None:
    photo = client.image(png())
    photo.classify(["a dog", "a cat"])
    assert photo.info == samclip.ImageInfo(image_key(png()), WIDTH, HEIGHT, cached=False)
    photo.segment([(3, 4)])
    photo.semantic(["dog", "grass"])
    photo.everything()
    photo.embed()
    assert service.uploads == [photo.key] == [image_key(png())]
    sources = [(r.images[0] if hasattr(r, "images") else r.image) for r, _ in service.calls]
    assert [s.WhichOneof("source") for s in sources] == ["key", "encoded"] + ["key"] * 4
    assert photo.info.cached


def test_a_photograph_that_the_service_lost_is_sent_again(
    service: FakeService, client: samclip.Client
) -> None:
    photo = client.image(png())
    photo.embed()
    service.files.clear()
    photo.embed()
    assert service.uploads == [photo.key, photo.key]


def test_by_key(service: FakeService, client: samclip.Client) -> None:
    client.image(png()).embed()
    known = client.by_key(image_key(png()))
    assert known.segment(boxes=[(1, 2, 5, 6)])[0].area == 16
    with pytest.raises(samclip.KeyUnknown, match="send the image") as caught:
        client.by_key("0" * 64).embed()
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert len(service.uploads) == 1


def test_every_kind_of_source_is_the_same_photograph(
    client: samclip.Client, tmp_path: Path
) -> None:
    pixels_HW3 = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    photo = client.image(pixels_HW3)
    assert client.image(photo) is photo
    path = tmp_path / "photo.png"
    path.write_bytes(photo.encoded)
    for source in (Image.fromarray(pixels_HW3), path, str(path), path.read_bytes()):
        assert client.image(source).key == photo.key
    stored = np.asarray(Image.open(io.BytesIO(photo.encoded)))
    np.testing.assert_array_equal(stored, pixels_HW3)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (17, TypeError),
        ("no/such/file.jpg", FileNotFoundError),
        (np.zeros((4, 4)), TypeError),
        *((np.zeros(s, np.uint8), TypeError) for s in ((3, 4, 5), (4, 4, 1), (4,), (2, 4, 4, 3))),
    ],
)
def test_sources_that_are_no_photographs(
    client: samclip.Client, source: object, error: type[Exception]
) -> None:
    named = f"found {source.dtype} {source.shape}" if isinstance(source, np.ndarray) else ""
    with pytest.raises(error) as caught:
        client.image(source)  # type: ignore[arg-type]
    assert named in str(caught.value)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_a_pillow_image_of_any_colours_is_sent_as_rgb(client: samclip.Client, mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (200, 60, 20)).convert(mode)
    sent = Image.open(io.BytesIO(client.image(picture).encoded))
    assert sent.mode == "RGB"
    np.testing.assert_array_equal(sent, picture.convert("RGB"))


def test_a_file_that_is_too_large_is_not_read(client: samclip.Client, tmp_path: Path) -> None:
    with (tmp_path / "disk.png").open("wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(ValueError, match=r"disk\.png: a file larger than 64 MiB"):
        client.image(tmp_path / "disk.png")
