import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samclip.images import read_pixels

from samclip_core.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from samclip_core.io.image import MAX_SIDE, ImageLimits, decode, probe, read

LIMITS = ImageLimits()
RAMP_HW3 = np.stack(np.broadcast_arrays(
    np.arange(48)[:, None] * 5, np.arange(64)[None] * 3, np.full((48, 64), 90)
), axis=-1).astype(np.uint8)  # fmt: skip


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b""))
    )


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
        ("WEBP", {"quality": 95}, 12),
    ],
)
def test_formats_give_their_pixels(kind: str, options: dict, tolerance: int) -> None:
    encoded = encode(Image.fromarray(RAMP_HW3), kind, **options)
    assert probe(encoded, LIMITS) == (64, 48)
    decoded = decode(encoded, LIMITS)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert np.abs(decoded.astype(int) - RAMP_HW3).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(kind: str, orientation: int) -> None:
    upright = Image.fromarray(RAMP_HW3)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = encode(stored, kind, exif=exif, **options)
    assert probe(encoded, LIMITS) == (64, 48)
    decoded = decode(encoded, LIMITS)
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - RAMP_HW3).mean() < 4
    np.testing.assert_array_equal(read_pixels(encoded), decoded)


def test_exif_data_after_the_pixels_of_a_png_turn_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(Image.fromarray(RAMP_HW3))
    late = encoded[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + encoded[-12:]
    with Image.open(BytesIO(late)) as picture:
        assert picture.getexif()[0x0112] == 6  # as Pillow finds it
    for read_ in (partial(decode, limits=LIMITS), read_pixels):
        np.testing.assert_array_equal(read_(late), RAMP_HW3)


@pytest.mark.parametrize(
    ("values_HW", "mode", "expected"),
    [
        (np.array([[0, 9, 255]], np.uint8), "L", [0, 9, 255]),
        (np.array([[0, 255, 255]], np.uint8), "1", [0, 255, 255]),
        (np.array([[0, 32896, 65535]], np.uint16), "I;16", [0, 128, 255]),
    ],
)
def test_grey_keeps_its_range(values_HW: np.ndarray, mode: str, expected: list[int]) -> None:
    grey = Image.fromarray(values_HW)
    decoded = decode(encode(grey if mode == grey.mode else grey.convert(mode)), LIMITS)
    np.testing.assert_array_equal(decoded, np.repeat(np.array([expected])[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_profile_does_not_refuse_the_picture(kind: str) -> None:
    picture = Image.fromarray(RAMP_HW3)
    expected = decode(encode(picture, kind, lossless=True), LIMITS)
    odd = encode(picture, kind, lossless=True, icc_profile=b"no profile at all")
    np.testing.assert_array_equal(decode(odd, LIMITS), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_over_white(kind: str) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3], rgba[2:, :, 3] = 255, 51
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode(encode(Image.fromarray(rgba), kind, **options), LIMITS)
    assert (decoded[:2] == 0).all()
    assert (decoded[2:] == 204).all()


def test_grey_alpha_and_transparent_colour() -> None:
    grey_alpha = np.zeros((2, 2, 2), np.uint8)
    assert (decode(encode(Image.fromarray(grey_alpha, "LA")), LIMITS) == 255).all()
    decoded = decode(encode(Image.new("RGB", (2, 2), (9, 8, 7)), transparency=(9, 8, 7)), LIMITS)
    assert (decoded == 255).all()


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(encode(image), LIMITS), [[[10, 20, 30], [200, 100, 50]]])
    decoded = decode(encode(image, transparency=bytes([0, 255])), LIMITS)
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [200, 100, 50]]])


def test_cmyk_jpeg() -> None:
    encoded = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decode(encoded, LIMITS).astype(int) - [255, 0, 0]).max() < 6


def test_a_huge_header_is_refused_before_decoding() -> None:
    for call in (probe, decode):
        with pytest.raises(InvalidImage, match=r"50000×50000 = 2,500,000,000 pixels, the limit is"):
            call(png_header(50_000, 50_000), LIMITS)
        with pytest.raises(InvalidImage, match=r"10000×10000 .* the limit is 64,000,000"):
            call(png_header(10_000, 10_000), LIMITS)  # Pillow would only warn


@pytest.mark.parametrize(
    "first_chunk",
    [
        b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3e\x00\xff\x3e\x00",
        b"VP8L" + struct.pack("<IBI", 9, 0x2F, 16127 | 16127 << 14) + bytes(4),
        b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16128, 16128),
    ],
)  # fmt: skip
def test_a_huge_webp_header_is_refused(first_chunk: bytes) -> None:
    encoded = b"RIFF" + struct.pack("<I", 4 + len(first_chunk)) + b"WEBP" + first_chunk
    with pytest.raises(InvalidImage, match=r"16128×16128 .* the limit is"):
        probe(encoded, LIMITS)


def test_the_webp_header_states_the_true_size() -> None:
    image = Image.fromarray(RAMP_HW3)
    alpha = Image.fromarray(RAMP_HW3).convert("RGBA")
    alpha.putalpha(77)
    tight = ImageLimits(max_pixels=64 * 48)
    for encoded in (
        encode(image, "WEBP"), encode(image, "WEBP", lossless=True), encode(alpha, "WEBP"),
    ):  # fmt: skip
        assert probe(encoded, tight) == (64, 48)
        with pytest.raises(InvalidImage, match="64×48"):
            probe(encoded, ImageLimits(max_pixels=64 * 48 - 1))


def test_too_many_bytes() -> None:
    with pytest.raises(ImageTooLarge, match="101 bytes, the limit is 100"):
        decode(bytes(101), ImageLimits(max_bytes=100))


def test_damaged_pixels_are_invalid() -> None:
    encoded = bytearray(encode(Image.fromarray(RAMP_HW3)))
    encoded[60:90] = bytes(30)
    with pytest.raises(InvalidImage, match="damaged"):
        decode(bytes(encoded), LIMITS)


def test_a_file_of_one_byte_is_said_to_be_cut_off() -> None:
    with pytest.raises(InvalidImage, match=r"^the file has one byte, so it was cut off: send it"):
        probe(b"a", LIMITS)


@pytest.mark.parametrize("encoded", [b"", b"hello, I am text", bytes(500), b"\xff\xd8", b"RIFF"])
def test_not_an_image(encoded: bytes) -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        probe(encoded, LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO", "JPEG2000"])
def test_other_formats_are_unsupported(kind: str) -> None:
    with pytest.raises(UnsupportedImage, match="send JPEG, PNG or WebP"):
        probe(encode(Image.fromarray(RAMP_HW3), kind), LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidImage, match="animated"):
        probe(encoded, LIMITS)


JPEG = encode(Image.fromarray(RAMP_HW3), "JPEG")
PROGRESSIVE = encode(Image.fromarray(RAMP_HW3), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
PNG = encode(Image.fromarray(RAMP_HW3))
BOMB = zlib.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    "encoded",
    [
        PROGRESSIVE[:-2] + LAST_SCAN * 100 + PROGRESSIVE[-2:],
        JPEG[:2] + b"\xff\xfe\0\2" * 2000 + JPEG[2:],
        JPEG[:2] + b"\xff" * 2000 + JPEG[2:],
        PNG[:33] + png_chunk(b"prVt", b"") * 2000 + PNG[33:],
        PNG[:-12] + png_chunk(b"prVt", b"") * 2000 + PNG[-12:],
        PNG[:33] + png_chunk(b"IDAT", b"") * 200_000 + PNG[33:],
        PNG[:33] + png_chunk(b"zTXt", b"a\0\0" + BOMB) + PNG[33:],
        PNG[:33] + png_chunk(b"iCCP", b"a\0\0" + BOMB) + PNG[33:],
    ],
    ids=["scans", "segments", "fill", "chunks", "late chunks", "pixel chunks", "text", "profile"],
)
def test_what_makes_a_decoder_work_for_nothing_is_refused(encoded: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"re-encode it|damaged header|damaged or truncated"):
        decode(encoded, LIMITS)


def test_files_with_much_in_them_are_no_bombs() -> None:
    profile = bytes(range(256)) * 4000  # 1 MB in 16 segments
    for options in ({"progressive": True}, {"icc_profile": profile}, {"restart_marker_blocks": 1}):
        encoded = encode(Image.fromarray(RAMP_HW3), "JPEG", **options)
        assert decode(encoded, LIMITS).shape == RAMP_HW3.shape
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    encoded = encode(Image.fromarray(noise), "JPEG", quality=100, subsampling=0)
    assert decode(encoded, LIMITS).shape == (900, 900, 3)


def test_what_else_a_file_may_be_does_not_matter() -> None:
    """Data after the picture is ignored; data before it makes the file invalid."""
    page, archive = b"<html><script>alert(1)</script>", b"PK\3\4" + bytes(100)
    for encoded in (JPEG, PNG):
        expected = decode(encoded, LIMITS)
        for tail in (page, archive, b"\xff\xda" * 10_000, b"\xff" * 10_000):
            np.testing.assert_array_equal(decode(encoded + tail, LIMITS), expected)
        with pytest.raises(InvalidImage):
            decode(page + encoded, LIMITS)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of odd EXIF data
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",  # 65,535 absent entries
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\x08\0\0\0",  # 99, then a cycle
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\4\0\xff\xff\xff\x7f\x08\0\0\0",  # 2**31 values
    ],
    ids=["garbage", "too few entries", "no such orientation", "too many values"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_leaves_the_picture_as_it_is(kind: str, exif: bytes) -> None:
    picture = Image.fromarray(RAMP_HW3)
    expected = decode(encode(picture, kind, lossless=True), LIMITS)
    np.testing.assert_array_equal(
        decode(encode(picture, kind, lossless=True, exif=exif), LIMITS), expected
    )


def test_a_phone_picture_with_a_second_picture_is_its_first() -> None:
    second = Image.new("RGB", (64, 48), "blue")
    encoded = encode(Image.fromarray(RAMP_HW3), "MPO", save_all=True, append_images=[second])
    assert np.abs(decode(encoded, LIMITS).astype(int) - RAMP_HW3).mean() < 4


def webp_canvas(width: int, height: int) -> bytes:
    """Return the start of a WebP file whose header states this canvas size."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides


@pytest.mark.parametrize(("width", "height"), [(1_100_000, 1), (1, 1_100_000), (MAX_SIDE + 1, 1)])
@pytest.mark.parametrize("file", [png_header, webp_canvas])
def test_a_side_beyond_the_limit_is_refused_by_the_header(
    width: int, height: int, file: Callable[[int, int], bytes]
) -> None:
    for check in (probe, decode):
        with pytest.raises(InvalidImage, match=rf"{width}×{height} pixels, the limit is 65,535"):
            check(file(width, height), LIMITS)


DECODE = """
import sys
from samclip_core.io.image import ImageLimits, decode
decode(sys.stdin.buffer.read(), ImageLimits())
"""


def test_damaged_exif_writes_nothing_to_the_log() -> None:
    tags = b"".join(struct.pack("<HHII", tag, 2, 4000, 20) for tag in range(100))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 100) + tags
    encoded = encode(Image.fromarray(RAMP_HW3), exif=exif)
    # In a subprocess, because pytest replaces the warning filters.
    command = [sys.executable, "-c", DECODE]
    ended = subprocess.run(command, input=encoded, capture_output=True, check=True)
    assert ended.stderr == b""


def test_a_picture_is_read_from_a_path_bytes_pillow_or_pixels(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    file = encode(Image.fromarray(RAMP_HW3), exif=turned)
    path = tmp_path / "ramp.png"
    path.write_bytes(file)
    expected = decode(file, LIMITS)
    assert expected.shape == (64, 48, 3)
    for image in (file, path, str(path), Image.open(path), expected):
        np.testing.assert_array_equal(read(image, LIMITS), expected)
    path.write_bytes(file[:-30])
    with pytest.raises(InvalidImage, match=r"ramp\.png: the PNG file is damaged or truncated"):
        read(path, LIMITS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "the image is of type NoneType: expected a path"),
        ([[1, 2, 3]], "the image is of type list: expected a path"),
        (np.zeros((4, 4), np.uint8), "expected uint8 RGB"),
        (np.zeros((4, 4, 3)), "image array is float64"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8 RGB"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(image: Any, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        read(image, LIMITS)
