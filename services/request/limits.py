"""Limits on the content of requests and answers.

Those that need the size of the image are checked after it is encoded, all others before any work.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeVar

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.examples import MAX_EXAMPLES, check_examples
from samclip_core.answers.request import of_part
from samclip_core.errors import InvalidLabels, InvalidPrompt, InvalidRequest, SamClipError
from samclip_core.geometry import Crop, Geometry
from samclip_core.io.image import ImageLimits
from services.request.transit import REPLIES
from services.settings import Settings

Part = TypeVar("Part", bound=Message)

MAX_TEXT = 1000  # characters of one label, template or text: far more than any tokenizer keeps
MAX_EXPANDED = 2 * MAX_TEXT  # characters of a template with its label filled in
TEXTS_PER_LABEL = 16  # templates per label, at the maximum number of labels
MAX_MASK_PIXELS = 2**33
"""Total pixels of the masks in one answer: 2,048 masks of a 4-megapixel photograph, which take two
cores half a minute. PNG stores every pixel, so it counts twice."""
MAX_REPLY_BYTES = 80 * 2**20
"""Bytes of one answer, of which JSON makes a third more: the logits of 256 prompts, for
example. gRPC writes them on the event loop, in 0.1 s."""
VALUE_BYTES = 32  # counted for a coordinate or a pair of metadata, besides those of the message
to_json_text = json.JSONEncoder(ensure_ascii=False).encode  # a control character becomes six
SCORE_BYTES = 512  # counted for a score, besides its label
MAX_RLE_BYTES = 2**20
"""Bytes of one mask in a request: several times a detailed mask of 64 megapixels."""
MAX_ALIKE = 64
"""Prompts with examples in one request: each compares all regions of the image."""
MAX_EXAMPLE_POINTS = 16  # of one example: a mask says more
MAX_TOP_K = 10_000
MAX_INLINE = 1_000  # items whose vectors are listed in one request
MAX_VECTORS = 2048  # as lists of numbers, each of 20 characters; OpenAI has the same limit
MAX_FILTER = 32  # metadata pairs in one search
MAX_FORM_PARTS = 32_768  # even if the settings allow more: parsing this many takes over a second
OTHER_FIELDS = 64  # more than any request has besides its repeated fields
MAX_VALUES = 400_000
"""Values of the JSON of one request, before it is parsed: each becomes an object of some hundred
bytes. By default, the largest request that is allowed has 330,000: 256 prompts with as many points
and not_texts each."""
FORM_HEADERS, PART_HEADERS = 2**16, 256  # bytes of a form besides its values, and more per part
MAX_ITEMS = 1024  # in one IndexRequest
MAX_OUTPUTS = 64  # named in one request, repeated ones included; the same for tensors sent


def image_limits(settings: Settings) -> ImageLimits:
    """Return the limits on one image file."""
    return ImageLimits(settings.max_image_bytes, settings.max_image_pixels)


def form_parts(settings: Settings) -> int:
    """Return the number of form parts in the largest request that the settings allow."""
    texts = TEXTS_PER_LABEL * settings.max_labels
    parts = texts + settings.max_prompts + settings.max_images + OTHER_FIELDS
    return min(parts, MAX_FORM_PARTS)


def most_values(settings: Settings) -> dict[str, int]:
    """Return the most values of each repeated field of requests, by its name."""
    rows = (
        ("images", settings.max_images),
        ("prompts points not_texts areas", settings.max_prompts),
        ("labels others names", settings.max_labels),
        ("examples", MAX_EXAMPLES),
        ("templates texts", TEXTS_PER_LABEL * settings.max_labels),
        ("items", MAX_ITEMS),
        ("metadata", MAX_VALUES),  # its bytes are limited for each item
        ("filter", MAX_FILTER),
        ("ids", MAX_TOP_K),
        ("outputs shape", MAX_OUTPUTS),
    )
    return {name: most for names, most in rows for name in names.split()}


def check_most(
    count: int,
    found: str,
    most: int,
    advice: str = "send fewer",
    error: type[SamClipError] = InvalidRequest,
) -> None:
    """Raise an error with ``found``, where ``{}`` stands for the count, if it exceeds ``most``."""
    if count > most:
        raise error(f"{found.format(count)}, at most {most:,}: {advice}")


def check_images(images: Sized, most: int) -> None:
    """Raise InvalidRequest unless there is at least one image and at most ``most``."""
    if not len(images):
        raise InvalidRequest("no image: send at least one")
    check_most(len(images), "{} images in one request", most)


def check_labels(labels: Sequence[str], most: int) -> None:
    """Raise InvalidLabels unless there are 1 to ``most`` labels and none is blank."""
    if not labels:
        raise InvalidLabels("no labels: send at least one label to choose from")
    check_most(len(labels), "{} labels", most, error=InvalidLabels)
    for index, label in enumerate(labels):
        check_text(label, f"label {index}")


def check_text(text: str, what: str, most: int = MAX_TEXT) -> None:
    """Raise InvalidLabels if a text is blank or too long; ``what`` names it in the message."""
    if not text.strip():
        raise InvalidLabels(f"{what} is empty: it needs some text")
    if len(text) > most:
        raise InvalidLabels(f"{what} has {len(text)} characters, at most {most}: shorten it")


def check_templates(templates: Sequence[str], labels: Sequence[str], most: int) -> None:
    """Raise InvalidLabels for a template without ``{}``, or for too many or too long texts."""
    what = f"{len(templates)} templates for {len(labels)} labels make {{}} texts"
    texts = len(templates) * len(labels)
    check_most(texts, what, TEXTS_PER_LABEL * most, error=InvalidLabels)
    longest = max(map(len, labels), default=0)
    for index, template in enumerate(templates):
        if "{}" not in template:
            raise InvalidLabels(
                f"template {index} is {template[:80]!r}: it needs {{}} where the label goes"
            )
        check_text(template, f"template {index}")
        if len(template) + template.count("{}") * (longest - 2) > MAX_EXPANDED:
            raise InvalidLabels(
                f"template {index} with the longest label makes more than {MAX_EXPANDED} "
                "characters: shorten one of them"
            )


def check_texts(texts: Sequence[str], most_labels: int) -> None:
    """Raise InvalidLabels for no texts, too many, or a text that is blank or too long."""
    if not texts:
        raise InvalidLabels("no texts: send at least one to embed")
    check_most(len(texts), "{} texts", TEXTS_PER_LABEL * most_labels, error=InvalidLabels)
    for index, text in enumerate(texts):
        check_text(text, f"text {index}", MAX_EXPANDED)


def check_range(name: str, value: float, most: float, note: str = "") -> None:
    """Raise InvalidRequest unless a value is between 0 and ``most``; ``note`` ends the message."""
    if not 0 <= value <= most:
        raise InvalidRequest(f"{name} is {value}, expected 0 to {most}{note}")


def check_offset(offset: int, top_k: int) -> None:
    """Raise InvalidRequest unless all results lie within the first MAX_TOP_K of the ranking."""
    check_range("offset", offset, MAX_TOP_K - top_k, f" with a top_k of {top_k}")


def check_listing(request: pb.ListItemsRequest) -> None:
    """Raise InvalidRequest unless the request names either items or a page of them."""
    most, note = (MAX_INLINE, " with inline") if request.inline else (MAX_TOP_K, "")
    check_range("limit", request.limit, most, note)
    check_most(len(request.ids), f"{{:,}} ids in one request{note}", most)
    if request.ids and (request.after_id or request.limit):
        raise InvalidRequest("the request has both ids and a page: leave after_id and limit out")


def check_deletion(request: pb.DeleteRequest) -> None:
    """Raise InvalidRequest unless the request names either items or the whole collection.

    The number of items is limited because all collections share the thread that deletes them.
    """
    check_most(len(request.ids), "{:,} ids in one request", MAX_TOP_K)
    if bool(request.ids) == request.all:
        found = "both ids and all" if request.all else "neither ids nor all"
        raise InvalidRequest(
            f"the request has {found}: send ids to delete those items, or all set to true and no "
            "ids to delete the whole collection"
        )


def check_metadata(metadata: Mapping[str, str], most: int) -> None:
    """Raise InvalidRequest if an item has more than ``most`` bytes of metadata."""
    size = len(metadata) - 1  # only one key can be empty
    if size <= most:
        size = sum(len(text.encode()) for pair in metadata.items() for text in pair)
    check_most(size, "the metadata has {:,} bytes", most, "send less")


def check_mask_pixels(count: int, geometry: Geometry, encoding: int) -> None:
    """Raise InvalidRequest if ``count`` masks of the image have too many pixels in total."""
    whole = encoding == pb.PNG
    most = MAX_MASK_PIXELS // (2 if whole else 1)
    pixels = count * geometry.width * geometry.height
    if pixels > most:
        kind = pb.MaskEncoding.Name(encoding)
        raise InvalidRequest(
            f"up to {count:,} masks of {geometry.width}×{geometry.height} pixels as {kind} are "
            f"{pixels:,} pixels, at most {most:,}: send a smaller image, or fewer prompts or "
            f"labels{', or choose RLE' if whole else ''}"
        )


def check_hit_pixels(found: Sequence[Geometry | Crop]) -> None:
    """Raise InvalidRequest if the masks of hits in these images have too many pixels in total."""
    sizes = (
        (of.picture_height, of.picture_width) if isinstance(of, Crop) else (of.height, of.width)
        for of in found
    )
    pixels = sum(height * width for height, width in sizes)
    what = f"the masks of {len(found):,} hits have {{:,}} pixels"
    check_most(pixels, what, MAX_MASK_PIXELS, "ask for fewer at once, with a smaller top_k")


def check_masks(count: int, geometry: Geometry, encoding: int, side: int) -> None:
    """Raise InvalidRequest if masks have too many pixels, or too many bytes before compression.

    ``side`` is that of their logits.
    """
    check_mask_pixels(count, geometry, encoding)
    if encoding == pb.LOGITS:
        _check_bytes(4 * count * side**2, f"up to {count:,} masks as LOGITS")


def check_scores(count: int, labels: Sequence[str], top_k: int) -> None:
    """Raise InvalidRequest if the scores of ``count`` images or areas are too many or too long."""
    each = min(top_k or len(labels), len(labels))
    size = count * each * (SCORE_BYTES + max(len(to_json_text(label).encode()) for label in labels))
    _check_bytes(size, f"{count * each:,} scores, {each:,} for each of {count} images or areas,")


def _check_bytes(size: int, found: str = "the answer") -> None:
    advice = "ask for fewer at once, with a smaller top_k or limit, or for masks as RLE"
    check_most(size, f"{found} would have {{:,}} bytes", MAX_REPLY_BYTES, advice)


class Reply:
    """The bytes of one answer: counted while its parts are made, held in ``reserved`` until sent.

    Bytes count in ``reserved`` only after the gRPC or HTTP side has entered it.
    """

    def __init__(self, key: str = "") -> None:
        self._size = 0
        self.reserved = REPLIES.reserve(key)

    def add(self, size: int) -> None:
        """Count some bytes. Raises InvalidRequest if they are too many, Overloaded without room."""
        self._size += size
        _check_bytes(self._size)
        self.reserved.hold(size)

    def within(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield parts, and count each. Raises InvalidRequest before they are too many."""
        for part in parts:
            self.add(part.ByteSize() + _extra_as_json(part))
            yield part


def _extra_as_json(part: Message) -> int:
    """Return the bytes to count for a part's JSON besides those of the message."""
    match part:
        case pb.Mask():
            return VALUE_BYTES * sum(len(ring.xy) for ring in part.polygons.polygons)
        case pb.Region():
            return _extra_as_json(part.mask)
        case pb.Hit() | pb.ListedItem():
            stored = sum(len(text.encode()) for pair in part.metadata.items() for text in pair)
            longer = len(to_json_text(dict(part.metadata))) - stored
            return VALUE_BYTES * len(part.metadata) + max(0, longer)
    return 0


def check_prompts(prompts: Sequence[pb.Prompt], most: int) -> None:
    """Raise InvalidPrompt unless there are 1 to ``most`` prompts, each of up to ``most`` points.

    Raises InvalidRequest for a huge RLE.
    """
    if not prompts:
        raise InvalidPrompt("no prompts: send points, a box, a mask, a text or examples")
    found, kind = "{} prompts in one request", InvalidPrompt
    check_most(len(prompts), found, most, error=kind)
    for index, prompt in enumerate(prompts):
        check_most(len(prompt.points), f"prompt {index} has {{}} points", most, error=kind)
        check_most(len(prompt.not_texts), f"prompt {index} has {{}} not_texts", most, error=kind)
    count = sum(len(prompt.examples) for prompt in prompts)
    check_most(count, "{} examples in one request", most, error=kind)
    alike = sum(bool(prompt.examples) for prompt in prompts)
    check_most(alike, "{} prompts with examples", MAX_ALIKE, "send several requests", kind)
    for index, prompt in enumerate(prompts):
        with of_part(f"prompt {index}"):
            _check_rle(prompt.mask)
            if prompt.examples:
                check_example_messages(prompt.examples)


def check_example_messages(examples: Sequence[pb.Example]) -> None:
    """Raise InvalidPrompt for too many examples, none that is wanted, or one without a place.

    Raises it for too many points as well, and InvalidRequest for a huge RLE. The rest is checked
    when the size of the image is known.
    """
    check_examples(example.negative for example in examples)
    for index, example in enumerate(examples):
        with of_part(f"example {index}"):
            place = example.WhichOneof("place")
            if place is None or (place == "points" and not example.points.points):
                raise InvalidPrompt("the place is empty: give a box, points or a mask")
            count = len(example.points.points)
            check_most(count, "{} points", MAX_EXAMPLE_POINTS, error=InvalidPrompt)
            _check_rle(example.mask)


def check_areas(areas: Sequence[pb.Area], images: int, most: int) -> None:
    """Raise InvalidRequest for areas of several images, too many, an empty one or a huge RLE.

    The rest is checked when the size of the image is known.
    """
    if areas and images != 1:
        raise InvalidRequest(f"areas of {images} images: send exactly one image with areas")
    check_most(len(areas), "{} areas in one request", most)
    for index, area in enumerate(areas):
        if area.WhichOneof("shape") is None:
            raise InvalidRequest(f"area {index} is empty: give a box or an rle")
        with of_part(f"area {index}"):
            _check_rle(area.rle)


def _check_rle(rle: pb.CocoRle) -> None:
    found, advice = "the mask has {:,} bytes", "send one with smoother outlines"
    check_most(rle.ByteSize(), found, MAX_RLE_BYTES, advice)


def check_encoding(request: Message, panoptic: bool = False) -> None:
    """Raise InvalidRequest for an unknown mask encoding, or PANOPTIC unless it is allowed."""
    encoding = getattr(request, "encoding", pb.RLE)
    if encoding not in pb.MaskEncoding.values():
        raise InvalidRequest(
            f"mask encoding {encoding} is unknown, "
            f"expected one of {', '.join(pb.MaskEncoding.keys())}"
        )
    if encoding == pb.PANOPTIC and not panoptic:
        raise InvalidRequest(
            "PANOPTIC is one picture of everything: choose another encoding, or SegmentEverything"
        )
