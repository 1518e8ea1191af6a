"""Any bytes either decode to a picture or raise InvalidImage."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samclip_core.errors import InvalidImage, UnsupportedImage
from samclip_core.io.image import ImageLimits, decode, probe

LIMITS = ImageLimits(max_pixels=10_000)


def encode(kind: str) -> bytes:
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(noise_HW3).save(stream, kind, exif=Image.Exif())
    return stream.getvalue()


FILES = {kind: encode(kind) for kind in ("JPEG", "PNG", "WEBP")}


def decode_or_refuse(encoded: bytes) -> None:
    try:
        width, height = probe(encoded, LIMITS)
        decoded_HW3 = decode(encoded, LIMITS)
    except InvalidImage:
        return
    assert decoded_HW3.shape == (height, width, 3)
    assert decoded_HW3.dtype == np.uint8


@given(encoded=st.binary(max_size=64), magic=st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF"]))
def test_any_bytes(encoded: bytes, magic: bytes) -> None:
    decode_or_refuse(magic + encoded)


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_damaged_files(kind: str, data: st.DataObject) -> None:
    encoded = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(encoded))


@pytest.mark.parametrize("kind", FILES)
@given(kept=st.floats(0, 0.97))
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    encoded = FILES[kind]
    with pytest.raises(InvalidImage) as caught:
        decode(encoded[: int(len(encoded) * kept)], LIMITS)
    assert not isinstance(caught.value, UnsupportedImage)
