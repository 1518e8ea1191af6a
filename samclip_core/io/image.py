"""Decode JPEG, PNG and WebP files to RGB pixels; all limits are checked before decoding.

Thread-safe: no call reads or changes global state, which rules out Pillow's ``Image.open`` with
its global pixel limit. Colour profiles are not applied.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from samclip.values.pictures import SUFFIXES as SUFFIXES
from samclip.values.pictures import image_key as image_key
from samclip.values.pictures import turn_of

from samclip_core import guarded
from samclip_core.errors import ImageTooLarge, InvalidImage, SamClipError, UnsupportedImage

# Pillow warns about every damaged EXIF tag: a 700 kB image can log 60,000 lines.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")

Readable = bytes | str | Path | Image.Image | NDArray[np.uint8]
"""An encoded file, its path, a PIL picture, or RGB uint8 H×W×3."""
_OPENERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
}
_FOREIGN = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"BM": "BMP",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"%PDF": "PDF",
}
_SWAPS_SIDES = {
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
}

# A small file can keep a decoder busy for hours: a JPEG decoder passes over the whole image once
# per scan, and every piece of metadata is parsed, however small. Real files have about a dozen
# scans and at most a few hundred segments or chunks.
_MAX_SCANS = 50
_MAX_SEGMENTS = 1000  # of a JPEG; also chunks of a PNG other than IDAT
_MAX_FILL = 1000  # bytes between two segments
_MAX_CHUNKS = 100_000  # of a PNG
MAX_SIDE = 65_535
"""Maximum width and height: JPEG's limit. libpng, which writes the masks, allows 1,000,000."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # except those inside a scan
_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class ImageLimits:
    """Limits on an image to decode: encoded bytes, and pixels (width × height)."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000


def probe(encoded: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Return (width, height) in pixels after EXIF orientation, from the header alone.

    Raises the errors of ``decode``, except for damage in the pixel data.
    """
    with _open(encoded, limits) as image:
        width, height = image.size
        return (height, width) if turn_of(image) in _SWAPS_SIDES else (width, height)


def whole_size(encoded: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Return the size of a complete file, as ``probe``. Raises the errors of ``decode``.

    Only what does not end as its format does is decoded.
    """
    size = probe(encoded, limits)
    if not any(end in encoded[-1024:] for end in (b"\xff\xd9", b"IEND")):
        decode(encoded, limits)
    return size


def decode(
    encoded: bytes, limits: ImageLimits, least: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP file to upright (EXIF) RGB uint8 H×W×3, transparency over white.

    Only the first image of a multi-picture JPEG (a phone's depth or HDR map follows it) is read.
    With ``least``, an upright (width, height), a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if
    that is not smaller in either dimension.

    Raises ImageTooLarge (too many bytes), UnsupportedImage (another format) or InvalidImage (too
    many pixels, animated, damaged, not an image).
    """
    with _open(encoded, limits) as image:
        turn = turn_of(image)
        if least is not None:
            # Its size in the file. Pillow leaves other formats at full size.
            image.draft(None, least[::-1] if turn in _SWAPS_SIDES else least)
        try:
            image.load()
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise InvalidImage(
                f"the {image.format} file is damaged or truncated ({error}): send the complete file"
            ) from error
        return _upright(image, turn)


def read(image: Readable, limits: ImageLimits) -> NDArray[np.uint8]:
    """Return the upright RGB uint8 H×W×3 of a file, its path, a PIL picture, or pixels.

    Raises InvalidImage for anything else, OSError for a path that cannot be read, and the errors of
    ``decode``.
    """
    if isinstance(image, (str, Path)):
        try:
            encoded = guarded.read(image, max(limits.max_bytes, guarded.MOST_BYTES))
        except ValueError as error:
            raise InvalidImage(str(error)) from error
        try:
            return decode(encoded, limits)
        except SamClipError as error:
            raise type(error)(f"{image}: {error}") from error
    if isinstance(image, bytes):
        return decode(image, limits)
    if isinstance(image, Image.Image):
        return pixels(image)
    if not isinstance(image, np.ndarray):
        raise InvalidImage(
            f"the image is of type {type(image).__name__}: expected a path, the bytes of a file, a "
            "PIL picture, or an array of RGB pixels"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InvalidImage(f"image array is {image.dtype} {image.shape}: expected uint8 RGB, H×W×3")
    return image


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image that Pillow has opened as ``decode`` does: upright RGB."""
    return _upright(image, turn_of(image))


def encode_png(image_HWC: NDArray[np.uint8]) -> bytes:
    """Encode RGB or RGBA pixels as a PNG file, without loss."""
    file = BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _open(encoded: bytes, limits: ImageLimits) -> ImageFile:
    """Read the header and check the limits, without decoding pixels."""
    if len(encoded) > limits.max_bytes:
        raise ImageTooLarge(
            f"the file has {len(encoded):,} bytes, the limit is {limits.max_bytes:,}: "
            "send a smaller or more compressed file"
        )
    kind = _kind(encoded)
    if kind != "WebP":
        _CHECKS[kind](encoded)
    try:
        if kind == "WebP":  # its decoder allocates the canvas when it is constructed
            _check_pixels(*_webp_size(encoded), limits)
        image = _OPENERS[kind](BytesIO(encoded))
    except InvalidImage:
        raise
    except Exception as error:  # a parser may raise anything on damaged bytes
        raise InvalidImage(
            f"the {kind} file has a damaged header ({error}): send the complete file"
        ) from error
    _check_pixels(*image.size, limits)
    if kind != "JPEG" and getattr(image, "is_animated", False):
        raise InvalidImage(f"the {kind} file is animated: send one image, such as its first frame")
    return image


def _kind(encoded: bytes) -> str:
    if len(encoded) == 1:
        raise InvalidImage("the file has one byte, so it was cut off: send it again, complete")
    if encoded.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WebP"
    foreign = next((name for magic, name in _FOREIGN.items() if encoded.startswith(magic)), None)
    if encoded[4:8] == b"ftyp":
        foreign = "HEIC, AVIF or video"
    if foreign:
        raise UnsupportedImage(f"{foreign} files are not supported: send JPEG, PNG or WebP")
    raise InvalidImage(
        f"the {len(encoded):,} bytes are not an image: send a complete JPEG, PNG or WebP file"
    )


def _check_jpeg(encoded: bytes) -> None:
    """Raise InvalidImage if the file has more segments or scans than an image needs."""
    segments = scans = 0
    position = 2
    while found := _JPEG_MARKER.search(encoded, position):
        marker = encoded[found.start() + 1]
        fill = found.start() - position
        if marker == _END:
            return
        segments += 1
        scans += marker == _SCAN
        if scans > _MAX_SCANS or segments > _MAX_SEGMENTS or (not scans and fill > _MAX_FILL):
            raise InvalidImage(
                f"the JPEG file has more than {_MAX_SCANS} scans, {_MAX_SEGMENTS} segments or "
                f"{_MAX_FILL} bytes between two of them: re-encode it"
            )
        position = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2])


def _check_png(encoded: bytes) -> None:
    """Raise InvalidImage if the file has more chunks than an image needs."""
    chunks = others = 0
    position = 8
    while position < len(encoded):
        chunks += 1
        others += encoded[position + 4 : position + 8] != b"IDAT"
        if others > _MAX_SEGMENTS or chunks > _MAX_CHUNKS:
            raise InvalidImage(
                f"the PNG file has more than {_MAX_CHUNKS:,} chunks, or {_MAX_SEGMENTS} other than "
                "IDAT: re-encode it"
            )
        position += 12 + int.from_bytes(encoded[position : position + 4])


_CHECKS: dict[str, Callable[[bytes], None]] = {"JPEG": _check_jpeg, "PNG": _check_png}


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """Read (width, height) from the first chunk of a WebP file."""
    chunk, body = encoded[12:16], encoded[20:30]

    def number(start: int, end: int) -> int:
        return int.from_bytes(body[start:end], "little")

    if chunk == b"VP8X":
        return number(4, 7) + 1, number(7, 10) + 1
    if chunk == b"VP8L":
        bits = number(1, 5)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(6, 8) & 0x3FFF, number(8, 10) & 0x3FFF


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise InvalidImage(f"the header states {width}×{height} pixels: send the complete file")
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(
            f"the image has {width}×{height} pixels, the limit is {MAX_SIDE:,} per side: "
            "split it, or scale it down"
        )
    if width * height > limits.max_pixels:
        raise InvalidImage(
            f"the image has {width}×{height} = {width * height:,} pixels, the limit is "
            f"{limits.max_pixels:,}: scale it down"
        )


def _upright(image: Image.Image, turn: Image.Transpose | None) -> NDArray[np.uint8]:
    rgb = _to_rgb(image)
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, as uint16 or int32
        grey_HW = np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8)
        return Image.fromarray(grey_HW).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
