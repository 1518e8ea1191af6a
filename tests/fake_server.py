"""A service without a model, whose answers can be computed from the request by hand.

The mask of a box is the filled box; that of points is the rectangle from the origin to the first
point; the texts NOTHING have none. Labels become bands of columns, and scores follow from the
labels' lengths. The service records all requests.
"""

import io
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from PIL import Image
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from samclip_core.errors import InvalidRequest
from samclip_core.io.image import image_key
from samclip_core.io.masks import encode_label_map, write_png
from services.request.limits import check_metadata
from services.request.wire import to_mask, to_tensor

MODEL = pb.ModelInfo(name="fake", digest="d1935", kind="edge", dtype="int8")
SERVED = [
    pb.ServedModel(
        name="fake", digest="d1935", kind="edge", default=True, state="loaded", bytes=250_000_000
    ),
    pb.ServedModel(name="clip", digest="c11b", kind="radio", state="idle", without_masks=True),
    pb.ServedModel(name="today", digest="d1935", kind="edge", state="loaded", alias_of="fake"),
]
HEADS = [
    pb.ListedHead(
        name="echo",
        description="What it was given.\n\nAnd parts.",
        outputs=[pb.CLIP_POOLED],
        classes=["a"],
    ),
    pb.ListedHead(name="torn", reason="weights.bin is cut off"),
]
HEADS[0].parameters.update({"properties": {"at_least": {"type": "number", "maximum": 1}}})
Refusal = tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]
NOTHING = ("nothing", "ничего")
LIMITS = [(f"grpc.max_{way}_message_length", 64 * 2**20) for way in ("send", "receive")]
SERVICERS = [f"{service}Servicer" for service in pb.DESCRIPTOR.services_by_name]


class FakeService(*(getattr(pb_grpc, name) for name in SERVICERS)):
    """A servicer of all services; an rpc without a method here is not implemented.

    uploads: keys of the uploaded files, in order. calls: (request, headers), in order.
    refusal: if set, the (code, message, trailing metadata) with which every call fails.
    busy: refusals of the next calls. seconds_left: until the deadline of each call.
    release: while it is clear, calls wait.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, pb.IndexItem]] = {}
        self.most_metadata = 2**20
        self.concepts: dict[str, pb.Concept] = {}
        self.with_objects: set[str] = set()  # collections
        self.uploads: list[str] = []
        self.calls: list[tuple[Any, dict[str, str]]] = []
        self.refusal: Refusal | None = None
        self.busy: list[Refusal] = []
        self.seconds_left: list[float] = []
        self._refuse_later: tuple[int, Refusal] | None = None
        self.release = threading.Event()
        self.release.set()

    def refuse_after(self, calls: int, code: grpc.StatusCode, message: str) -> None:
        """Answer ``calls`` more calls, and refuse all later ones."""
        self._refuse_later = len(self.calls) + calls, (code, message, ())

    def _note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append((request, dict(context.invocation_metadata())))
        self.release.wait(30)
        if self._refuse_later and len(self.calls) > self._refuse_later[0]:
            self.refusal = self._refuse_later[1]
        self.seconds_left.append(context.time_remaining())
        if refusal := self.busy.pop() if self.busy else self.refusal:
            code, message, trailing = refusal
            context.set_trailing_metadata(trailing)
            context.abort(code, message)

    def _info(self, image: pb.Image, context: grpc.ServicerContext) -> pb.ImageInfo:
        key = image.key or image_key(image.encoded)
        cached = key in self.files
        if image.encoded.startswith(b"broken"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not an image")
        if image.encoded:
            self.uploads.append(key)
            self.files[key] = image.encoded
        if key not in self.files:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{key} is not held: send the image")
        width, height = Image.open(io.BytesIO(self.files[key])).size
        return pb.ImageInfo(key=key, width=width, height=height, cached=cached)

    def Classify(self, request: Any, context: Any) -> pb.ClassifyResponse:
        self._note(request, context)
        total = sum(map(len, request.labels))
        labels = sorted(request.labels, key=len, reverse=True)[: request.top_k or None]
        scores = [
            pb.Score(label=label, score=len(label) / total, similarity=len(label) / 100)
            for label in labels
        ]
        infos = [self._info(image, context) for image in request.images]
        infos = infos * len(request.areas) or infos
        results = [pb.ClassifyResult(image=info, scores=scores) for info in infos]
        return pb.ClassifyResponse(results=results, model=MODEL)

    def Segment(self, request: Any, context: Any) -> pb.SegmentResponse:
        self._note(request, context)
        info = self._info(request.image, context)
        results = []
        for prompt in request.prompts:
            logits_hw = np.full((4, 4), len(prompt.points))
            if prompt.HasField("mask_input"):
                logits_hw = np.frombuffer(prompt.mask_input.data, "<f4").reshape(4, 4) + 1
            mask_HW = _filled(info, _up_to(prompt.points[0]) if prompt.points else prompt.box)
            masks = []
            several = request.multimask or prompt.text == "two things"
            for index in range(3 if several else prompt.text not in NOTHING):
                mask = to_mask(mask_HW, request.encoding, logits_hw.astype(np.float32))
                mask.predicted_iou, mask.stability_score = 1 - index / 4, 0.5
                mask.label = prompt.text
                masks.append(mask)
            things = [0, 0, 1] if prompt.text == "two things" else [0] * len(masks)
            results.append(pb.PromptResult(masks=masks, things=things))
        return pb.SegmentResponse(image=info, results=results, model=MODEL)

    def SegmentEverything(self, request: Any, context: Any) -> pb.SegmentEverythingResponse:
        self._note(request, context)
        info = self._info(request.image, context)
        label_map_HW = bands(info.height, info.width, request.points_per_side or 2)
        names = request.labels or ([f"a word of {request.vocabulary}"] * bool(request.vocabulary))
        if request.encoding == pb.PANOPTIC:
            return pb.SegmentEverythingResponse(
                image=info, panoptic=_panoptic(label_map_HW, names), model=MODEL
            )
        masks = []
        for index in np.unique(label_map_HW):
            mask = to_mask(label_map_HW == index, request.encoding)
            if names:
                mask.label = names[index % len(names)]
            masks.append(mask)
        return pb.SegmentEverythingResponse(image=info, masks=masks, model=MODEL)

    def StreamEverything(self, request: Any, context: Any) -> Iterator[pb.EverythingUpdate]:
        """Find the masks of SegmentEverything one by one, after one that is withdrawn."""
        reply = self.SegmentEverything(request, context)
        yield pb.EverythingUpdate(
            image=reply.image, model=MODEL, found=[{"id": 1, "mask": reply.masks[0]}]
        )
        for number, mask in enumerate(reply.masks, start=2):
            yield pb.EverythingUpdate(
                found=[{"id": number, "mask": mask}],
                withdrawn=[1] if number == 2 else [],
                progress=(number - 1) / len(reply.masks),
            )

    def SegmentText(self, request: Any, context: Any) -> pb.SegmentTextResponse:
        self._note(request, context)
        info = self._info(request.image, context)
        label_map_HW = bands(info.height, info.width, len(request.labels))
        if request.background:
            label_map_HW[0] = -1
        regions = [
            pb.Region(
                label=label,
                score=0.75 if request.refine else 0.5,
                area=int((label_map_HW == index).sum()),
                mask=to_mask(label_map_HW == index, request.encoding),
            )
            for index, label in enumerate(request.labels)
        ]
        for region in regions:
            region.mask.label = region.label
        png = encode_label_map(label_map_HW, len(request.labels))
        return pb.SegmentTextResponse(image=info, label_map_png=png, regions=regions, model=MODEL)

    def Explain(self, request: Any, context: Any) -> pb.ExplainResponse:
        self._note(request, context)
        info = self._info(request.image, context)
        levels_HW = (255 * bands(info.height, info.width, 2)).astype(np.uint8)
        high = 1 / (1 + len(request.others))
        return pb.ExplainResponse(
            image=info, heat_png=write_png(levels_HW), low=0, high=high, model=MODEL
        )

    def Ask(self, request: Any, context: Any) -> pb.AskResponse:
        """Answer with the parameters, two bands as masks, an array and a picture."""
        self._note(request, context)
        if request.head != "echo":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no head {request.head!r} is served here")
        info = self._info(request.image, context)
        bands_HW = bands(info.height, info.width, 2)
        reply = pb.AskResponse(
            image=info,
            masks=[to_mask(bands_HW == band, request.encoding) for band in range(2)],
            tensors=[to_tensor(np.arange(6, dtype=np.float32).reshape(2, 3))],
            pictures=[write_png(np.zeros((3, 4), np.uint8))],
            model=MODEL,
        )
        parts = [{"mask": {"$mask": band}, "name": name} for band, name in ((1, "b"), (0, "a"))]
        found = {"parts": parts, "map": {"$tensor": 0}, "drawn": {"$picture": 0}, "share": 0.5}
        reply.result.update({**found, "image": "the head's", **dict(request.parameters)})
        return reply

    def ListHeads(self, request: Any, context: Any) -> pb.ListHeadsResponse:
        self._note(request, context)
        return pb.ListHeadsResponse(heads=HEADS)

    def Index(self, request: Any, context: Any) -> pb.IndexResponse:
        self._note(request, context)
        held = self.collections.setdefault(request.collection, {})
        items, errors = dict[str, pb.IndexItem](), []
        first = {item.id: number for number, item in reversed([*enumerate(request.items)])}
        for number, item in enumerate(request.items):
            repeated = f"an earlier item of the request also has the id {item.id!r}"
            if why := repeated if first[item.id] != number else self._wrong(item):
                errors.append(pb.ItemError(id=item.id, message=why))
            else:
                items[item.id] = item
        if request.made_by.digest and request.made_by.digest != MODEL.digest:
            text = "the vectors were made with another model"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        for item in items.values():
            if not item.vector:
                self._info(item.image, context)
        replaced = len(held.keys() & items.keys())
        held |= items
        found = request.objects or any(item.objects for item in items.values())
        self.with_objects |= {request.collection} if found else set()
        return pb.IndexResponse(indexed=len(items), errors=errors, replaced=replaced)

    def _wrong(self, item: pb.IndexItem) -> str:
        """Return the error of an item, or ""."""
        try:
            check_metadata(item.metadata, self.most_metadata)
        except InvalidRequest as error:
            return str(error)
        return "not an image" if item.image.encoded.startswith(b"broken") else ""

    def _held(self, collection: str, context: Any) -> dict[str, pb.IndexItem]:
        if collection not in self.collections:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no collection {collection!r}")
        return self.collections[collection]

    def Search(self, request: Any, context: Any) -> pb.SearchResponse:
        self._note(request, context)
        held = self._held(request.collection, context)
        if request.WhichOneof("query") == "image":
            self._info(request.image, context)
        wanted = request.text or request.id or request.image.key or "image"
        hits = [
            pb.Hit(id=name, score=float(name in wanted), metadata=item.metadata)
            for name, item in held.items()
            if dict(request.filter).items() <= dict(item.metadata).items()
        ]
        for hit in hits if request.objects else ():
            hit.mask.CopyFrom(to_mask(bands(6, 8, 2) > 0, pb.RLE))
            hit.box.CopyFrom(hit.mask.box)
        hits.sort(key=lambda hit: -hit.score)
        hits = hits[request.offset : request.offset + (request.top_k or 10)]
        return pb.SearchResponse(hits=hits, model=MODEL)

    def Put(self, request: Any, context: Any) -> pb.PutConceptResponse:
        self._note(request, context)
        for example in request.examples:
            self._info(example.image, context)
        count, replaced = len(request.examples), request.name in self.concepts
        made = pb.Concept(name=request.name, examples=count, model_digest=MODEL.digest)
        self.concepts[request.name] = made
        return pb.PutConceptResponse(concept=made, replaced=replaced)

    def List(self, request: Any, context: Any) -> pb.ListConceptsResponse:
        self._note(request, context)
        return pb.ListConceptsResponse(concepts=self.concepts.values(), model=MODEL)

    def Delete(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        if isinstance(request, pb.DeleteConceptRequest):
            del self.concepts[request.name]
            return pb.DeleteConceptResponse()
        held = self.collections[request.collection]
        ids = list(held if request.all else request.ids)
        return pb.DeleteResponse(deleted=sum(held.pop(name, None) is not None for name in ids))

    def Describe(self, request: Any, context: Any) -> pb.DescribeResponse:
        self._note(request, context)
        names = [request.collection] if request.collection else [*self.collections]
        sizes = {name: len(self._held(name, context)) for name in names}
        model = {"dimension": 4, "model_digest": MODEL.digest, "dtype": MODEL.dtype}
        found = [
            pb.Collection(name=name, count=count, objects=int(name in self.with_objects), **model)
            for name, count in sizes.items()
        ]
        return pb.DescribeResponse(collections=found)

    def ListItems(self, request: Any, context: Any) -> pb.ListItemsResponse:
        self._note(request, context)
        held = self._held(request.collection, context)
        names = [name for name in sorted(held) if name > request.after_id][: request.limit or 100]
        if request.ids:
            names = [name for name in request.ids if name in held]
        items = [
            pb.ListedItem(
                id=name, metadata=held[name].metadata, objects=int(bool(held[name].objects))
            )
            for name in names
        ]
        return pb.ListItemsResponse(items=items)

    def Embed(self, request: Any, context: Any) -> pb.EmbedResponse:
        self._note(request, context)
        info = self._info(request.image, context)
        shapes = {pb.SAM: (4, 2, 3), pb.CLIP_DENSE: (4, 2, 3), pb.CLIP_POOLED: (4,)}
        every = {**shapes, pb.REGIONS: (9,)}
        tensors = [
            to_tensor(np.full(every[output], output / 2, np.float16), pb.Output.Name(output))
            for output in request.outputs or shapes
        ]
        return pb.EmbedResponse(image=info, tensors=tensors, cached=info.cached, model=MODEL)

    def EmbedText(self, request: Any, context: Any) -> pb.EmbedTextResponse:
        self._note(request, context)
        rows_TD = np.eye(4, dtype=np.float32)[[len(text) % 4 for text in request.texts]]
        return pb.EmbedTextResponse(tensor=to_tensor(rows_TD), model=MODEL)

    def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        self._note(request, context)
        return pb.ListModelsResponse(models=SERVED)


def _up_to(point: pb.Point) -> pb.Box:
    """Return the box from the origin to a point."""
    return pb.Box(x_max=point.x, y_max=point.y)


def _filled(info: pb.ImageInfo, box: pb.Box) -> np.ndarray:
    mask_HW = np.zeros((info.height, info.width), bool)
    mask_HW[int(box.y_min) : int(box.y_max), int(box.x_min) : int(box.x_max)] = True
    return mask_HW


def _panoptic(label_map_HW: np.ndarray, names: Sequence[str]) -> pb.Panoptic:
    """Return the bands as segments with the ids 256, 512 …: their colours are shades of green."""
    colours_HW3 = np.zeros((*label_map_HW.shape, 3), np.uint8)
    colours_HW3[:, :, 1] = label_map_HW + 1
    file = io.BytesIO()
    Image.fromarray(colours_HW3).save(file, "PNG")
    segments = []
    for index in np.unique(label_map_HW).tolist():
        inside_HW = label_map_HW == index
        x_N = np.flatnonzero(inside_HW.any(axis=0))
        category = index % len(names) if names else -1
        segments.append(
            pb.PanopticSegment(
                id=256 * (index + 1),
                category_id=category + 1,
                area=int(inside_HW.sum()),
                bbox=[int(x_N[0]), 0, len(x_N), len(inside_HW)],
                label=names[category] if names else "",
            )
        )
    return pb.Panoptic(png=file.getvalue(), segments_info=segments)


def bands(height: int, width: int, count: int) -> np.ndarray:
    """Return int H×W: ``count`` bands of columns, numbered from the left."""
    return np.tile(np.arange(width) * count // width, (height, 1))


@contextmanager
def fake_server() -> Iterator[tuple[FakeService, str]]:
    """Run the service on a free port, and yield it with its address."""
    service = FakeService()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=LIMITS)
    for name in SERVICERS:
        getattr(pb_grpc, f"add_{name}_to_server")(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        service.release.set()
        server.stop(None).wait()
