"""The backbone without its transport: images to embeddings, via cache, decoders and queue.

    bytes → hash → memory? → Redis? ──hit───────────────────────────────────────────→ answer
              miss └→ admit → does another process encode it? ──yes, wait for it────→ answer
                               no └→ decode, check, resize → queue → encoder → store → answer

``embed`` does the first line, for each caller; ``_encode`` does the others, once per image. Images
are decoded before they queue, so that a bad file fails alone. The model runs in its own thread,
never on the event loop. Regions are searched in the embeddings afterwards (``_search``), again once
per image.
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.request import NO_TEXTS, check_has_masks
from samclip_core.config import Task
from samclip_core.encoder import Prepared
from samclip_core.errors import InvalidRequest, KeyUnknown, Overloaded
from samclip_core.geometry import Geometry
from samclip_core.io import image
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.backbone.health_check import HealthCheck
from services.backbone.texts import TextEmbedder, Tokens
from services.batching import threads
from services.batching.admission import moving_average
from services.batching.decoder import Decoder
from services.batching.priority import Priority
from services.batching.queue import Queue
from services.batching.threads import Threads
from services.cache import embedding_cache
from services.cache.embedding_cache import SingleFlight
from services.cache.entry import Entries, Entry, at_size, computed
from services.cache.memory import MemoryTier
from services.observability import metrics
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import image_limits
from services.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_TASK: dict[tuple[pb.Output, ...], Task] = {
    (pb.CLIP_POOLED,): "retrieval",
    (pb.CLIP_DENSE,): "semantic",
}
"""The task whose frame is used for these outputs if the request gives no size."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of one image; ``cached`` if it did not have to be encoded."""

    key: str
    entries: Entries
    cached: bool

    @property
    def geometry(self) -> Geometry:
        return next(iter(self.entries.values())).geometry


@dataclass(frozen=True, eq=False)
class _Picture:
    """An image for the encoder, which runs those of one side together."""

    cache_key: str
    prepared: Prepared

    @property
    def kind(self) -> object:
        return self.prepared.geometry.size


class Embedder:
    """One model on one device, for one event loop."""

    def __init__(self, model: SamClip, settings: Settings, memory: MemoryTier | None = None):
        self.model = model
        memory, size = memory or MemoryTier(settings.cache_bytes), model.config.image_size
        caches = embedding_cache.of_settings(settings, memory, model.digest, size)
        self.cache = caches(computed(model.dtype, model.graphs))
        self._limits = image_limits(settings)
        self._device_name = settings.device
        self._threads = Threads("decode")
        # One more than the streams: one image is prepared or stored while others are encoded.
        at_once = 1 if model.engine.batches else model.engine.streams + 1
        self._device = ThreadPoolExecutor(at_once, "device")
        # By cache key, while the encoding runs:
        self._encodings = SingleFlight[Entries]()
        self._priorities = WeakValueDictionary[str, Priority]()
        self.probe = HealthCheck(
            lambda: threads.run(self._device, "execute", partial(model.embed_text, ["a photo"]))
        )
        self._texts = TextEmbedder(model, self._threads)
        self._image_s = 0.0  # device time of an image of work 1
        self.queue = Queue[_Picture | Tokens, Any](
            self._run,
            part="image_encoder",
            max_queue=settings.max_queue,
            at_once=at_once,
            bucketed=True,
            # A run of texts is a whole batch: it waits for no image.
            cost=lambda item: math.inf if isinstance(item, Tokens) else 1,
            kind=lambda item: item.kind,
        )
        self._decoder = Decoder(model.sam_head, settings)
        self.tune(settings)

    @property
    def about(self) -> dict[str, Any]:
        """The engine of the encoders, and the milliseconds by which it chose its precision."""
        engine = self.model.engine
        name, measured = engine.names["image_encoder"], dict(engine.measured_ms)
        return {"name": name, "dtype": engine.dtype, "measured_ms": measured}

    def tune(self, settings: Settings) -> None:
        """Apply the batch settings from the next batch on."""
        self._decoder.tune(settings.max_prompt_batch)
        # Only an engine that gains from batches gets batches.
        size = settings.max_batch_size if self.model.engine.batches else 1
        self.queue.tune(size, settings.batch_wait_ms / 1000)

    def warm_up(self) -> None:
        """Run every batch size at every side once, so that first requests find all compiled."""
        for side in self.model.config.sizes:
            blank = self.model.prepare(np.zeros((64, 64, 3), np.uint8), side)
            for count in self.queue.sizes:
                self.model.encode_batch([blank] * count)
        self.model.embed_text(["a photo"])
        metrics.measure_memory(self._device_name)

    async def embed(
        self,
        context: RequestContext,
        source: bytes | str,
        outputs: Sequence[pb.Output],
        size: int = 0,
    ) -> Embedded:
        """Return the embeddings of an encoded image, or of the image with this key.

        ``size`` is the side of the frame, as in ``EmbedRequest``. Raises InvalidRequest,
        KeyUnknown, Overloaded, DeadlineExceeded and the errors of ``samclip_core.io.image.decode``.
        """
        if isinstance(source, str):
            key = source
        else:
            key = context.image_key or await self._threads.image_key(context.priority, source)
        size = self._size(outputs, size)
        cache_key = at_size(context.caller.cache_key(key), size, self.model.config.image_size)
        entries = await self.cache.get(
            cache_key, outputs, context.priority, shared=not context.image_key
        )
        if entries is not None:
            return Embedded(key, entries, cached=True)
        if pb.REGIONS in outputs:
            entries = await self._with_regions(context, source, cache_key, outputs, size)
        else:
            entries = await self._encoded(context, source, cache_key, size)
        return Embedded(key, {output: entries[output] for output in outputs}, cached=False)

    async def embed_text(
        self, context: RequestContext, texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return one unit-length row per text, T×D. Raises Overloaded and DeadlineExceeded."""
        return await self._texts.embed(texts, context.priority, self.queue, self._image_s)

    async def close(self) -> None:
        """Finish the queued work, then stop the threads."""
        await self.queue.close()
        await self._decoder.close()
        await self.cache.close()
        self._threads.close()
        self._device.shutdown(wait=False)
        vars(self).clear()  # cycles would keep the weights in memory

    def _size(self, outputs: Sequence[pb.Output], requested: int) -> int:
        """Return the side of the frame for a request. Raises InvalidRequest."""
        config = self.model.config
        if pb.SAM in outputs or pb.REGIONS in outputs:
            check_has_masks(config)
        if pb.SAM_FINE in outputs and not config.fine_dim:
            raise InvalidRequest("this checkpoint has no SAM_FINE: its masks need SAM alone")
        if not requested:
            task = DEFAULT_TASK.get(tuple(outputs))
            return config.size_of(task) if task else config.image_size
        if requested not in config.sizes:
            raise InvalidRequest(
                f"this checkpoint encodes images at {', '.join(map(str, config.sizes))} pixels, "
                f"not {requested}: choose one of these, or no size"
            )
        if pb.REGIONS in outputs and requested != config.image_size:
            raise InvalidRequest(
                f"the output REGIONS needs size {config.image_size}, not {requested}: leave out "
                "REGIONS, or choose no size"
            )
        if pb.SAM in outputs and requested not in config.sam_sizes:
            raise InvalidRequest(
                f"the output SAM needs size {' or '.join(map(str, config.sam_sizes))}, not "
                f"{requested}: leave out SAM, or choose no size"
            )
        return requested

    def _outputs(self, size: int) -> tuple[pb.Output, ...]:
        """Return the outputs that are computed and cached at this side."""
        with_sam = size in self.model.config.sam_sizes
        fine = with_sam and self.model.config.fine_dim
        left_out = {pb.SAM: not with_sam, pb.SAM_FINE: not fine}
        return tuple(output for output in wire.ENCODED if not left_out.get(output))

    async def _encoded(
        self, context: RequestContext, source: bytes | str, cache_key: str, size: int
    ) -> Entries:
        """Return the encoder's outputs for an image that is not cached."""
        if isinstance(source, str):
            raise KeyUnknown(
                f"no embedding is cached for the image key {source[:64]!r}: send the image"
            )
        if cache_key not in self._priorities:
            self.queue.admit(context.priority, self._work_of(size))  # refuse before decoding
        priority = self._priorities.setdefault(cache_key, Priority.of_nobody())
        priority.join(context.priority)
        return await self._encodings.run(
            cache_key, partial(self._encode, cache_key, source, size, priority)
        )

    async def _with_regions(
        self,
        context: RequestContext,
        source: bytes | str,
        cache_key: str,
        outputs: Sequence[pb.Output],
        size: int,
    ) -> Entries:
        """Return the regions of an image, and the embeddings: those asked for at least."""
        read = FindRegions().outputs(self.model.config)
        searched = (output for output in wire.ENCODED if pb.Output.Name(output) in read)
        needed = [*{*searched, *outputs} - {pb.REGIONS}]
        entries = await self.cache.get(cache_key, needed, context.priority)
        flight = f"{cache_key}:regions"
        shared = flight in self._priorities  # and announced by another caller
        priority = self._priorities.setdefault(flight, Priority.of_nobody())
        priority.join(context.priority)
        if entries is None:
            with nullcontext() if shared else self._decoder.coming(priority):
                entries = await self._encoded(context, source, cache_key, size)
        search = partial(self._search, priority, cache_key, entries)
        return {**entries, **await self._encodings.run(flight, search)}

    async def _search(self, priority: Priority, cache_key: str, entries: Entries) -> Entries:
        """Search the regions of an encoded image, once for all callers in this process."""
        async with self.cache.lease(cache_key, (pb.REGIONS,), priority) as elsewhere:
            known = elsewhere or await self.cache.get(cache_key, (pb.REGIONS,), priority)
            if known is not None:
                return known
            features = wire.to_features(entries, self.model.dtype)
            terms, config = self._decoder.terms, self.model.config
            steps = FindRegions().steps(features, NO_TEXTS, config, terms)
            regions = await self._decoder.run_long(priority, steps)
            packed = await self._threads.run(priority, "encode", regions.pack)
            made = {pb.REGIONS: Entry(np.frombuffer(packed, np.uint8), features.geometry)}
            self.cache.put(cache_key, made)
            return made

    async def _encode(
        self, cache_key: str, encoded: bytes, size: int, priority: Priority
    ) -> Entries:
        """Return all outputs of an image at this side, once for all callers in this process."""
        async with self.cache.lease(cache_key, self._outputs(size), priority) as elsewhere:
            if elsewhere is not None:
                return elsewhere
            work = self._work_of(size)
            with self.queue.coming(priority, work):
                pixels = await self._threads.run(
                    priority, "decode", image.decode, encoded, self._limits
                )
                prepared = await self._threads.run(
                    priority, "preprocess", self.model.prepare, pixels, size
                )
            entries: Entries = await self.queue.submit(
                _Picture(cache_key, prepared), priority, work
            )
            return entries

    def _work_of(self, size: int) -> float:
        """Return the share of the device's time for one image, by its pixels."""
        return (size / self.model.config.image_size) ** 2

    async def _run(self, batch: list[_Picture | Tokens]) -> list[Any]:
        """Return the entries of each image, or the rows of one run of texts."""
        if isinstance(batch[0], Tokens):
            rows = await threads.run(self._device, "execute", partial(self._texts.run, batch[0]))
            self.probe.worked()
            return [rows]
        pictures = [item for item in batch if isinstance(item, _Picture)]
        prepared = [picture.prepared for picture in pictures]
        results = await threads.run(self._device, "execute", partial(self._encode_batch, prepared))
        self.probe.worked()
        # Cached even if every caller has gone: a retry finds it.
        for picture, entries in zip(pictures, results, strict=True):
            self.cache.put(picture.cache_key, entries)
        return results

    def _encode_batch(self, prepared: list[Prepared]) -> list[Entries]:
        """Return the entries of each image, and measure the time."""
        since = monotonic()
        results = self._execute(prepared)
        work = sum(self._work_of(each.geometry.size) for each in prepared)
        self._image_s = moving_average(self._image_s, (monotonic() - since) / work)
        return results

    def _execute(self, prepared: list[Prepared]) -> list[Entries]:
        """Return the entries of each image; halves the batch if memory runs out.

        Raises Overloaded if there is not enough for one image.
        """
        try:
            return [self._entries(found) for found in self.model.encode_batch(prepared)]
        except MemoryError as error:
            logger.warning("not enough memory for a batch of %d: %s", len(prepared), error)
        # Outside ``except``: the error keeps its frames alive, and they hold the memory.
        if len(prepared) == 1:
            raise Overloaded("the device is out of memory for even one image: try again later")
        half = len(prepared) // 2
        return [*self._execute(prepared[:half]), *self._execute(prepared[half:])]

    def _entries(self, features: ImageFeatures) -> Entries:
        geometry = features.geometry
        return {
            output: Entry.of(getattr(features, wire.ENCODED[output]), geometry)
            for output in self._outputs(geometry.size)
        }
