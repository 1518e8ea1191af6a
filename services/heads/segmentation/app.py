"""Segmentation as a Serve application: masks for prompts, or of everything in an image."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.examples import Example
from samclip_core.answers.find_alike import ExamplePrompt
from samclip_core.answers.find_objects import ByPrompt, FindObjects
from samclip_core.answers.request import Needs, Output, check_has_masks, for_masks, of_part
from samclip_core.answers.rough import RoughMask
from samclip_core.answers.tiles import NO_LOGITS, NO_PLACE, Tiling, check_tiles, is_tiled
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask, ImageFeatures, MaskLogits, Prompt, TextPrompt
from services.batching.decoder import Decoder
from services.deployment import replica
from services.heads.head import HeadService
from services.heads.runner import Runner
from services.heads.segmentation.everything import Everything
from services.observability import metrics
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import (
    check_images,
    check_masks,
    check_prompts,
    check_text,
)
from services.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

Results = dict[int, pb.PromptResult]
Placed = Mapping[int, Prompt | RoughMask]
"""The prompts without text and examples, by index in the request."""
Sought = Mapping[int, TextPrompt | ExamplePrompt]
"""The other prompts."""
T = TypeVar("T")
SHORT_BYTES = 4096
"""Prompts of so many bytes, up to 300 points, are checked on the event loop in a millisecond."""
SMALL_PIXELS = 2**22
"""Pixels of masks that are encoded in the thread that decodes them, in about 10 ms; a quarter of it
as PNG or POLYGONS, which take up to four times as long."""


class Pointed(Needs):
    """Points, boxes, mask inputs and rough masks."""

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return for_masks(config)


class Segmentation(HeadService):
    """Runs SAM's prompt encoder and mask decoder."""

    name = "SegmentationService"
    application = "segmentation"
    tunable = (*HeadService.tunable, "max_prompt_batch")

    def __init__(self, settings: Settings, **given: Any):
        super().__init__(settings, **given)
        self._decoder = Decoder(self.sam_head, settings)

    def tune(self, settings: Settings) -> None:
        _check(settings)
        super().tune(settings)
        self._decoder.tune(settings.max_prompt_batch)

    async def close(self) -> None:
        await super().close()
        await self._decoder.close()

    async def health(self) -> dict[str, Any]:
        names = self.sam_head.engine.names
        return {**await super().health(), "engine": names.get("mask_decoder", "none")}

    async def Segment(
        self, request: pb.SegmentRequest, context: RequestContext
    ) -> pb.SegmentResponse:
        """Return the masks of each prompt: points, a box, a mask, a text or examples.

        Needs SAM, for points, boxes and masks; REGIONS for texts and examples, as their
        requests of the library say. Raises InvalidPrompt with the number of the prompt,
        InvalidRequest, NotFound of a concept, Overloaded, and the errors of ``encode``.
        """
        check_has_masks(self.config)
        check_prompts(request.prompts, self.settings.max_prompts)
        check_tiles(request.tiles, self.settings.max_tiles)
        sought, prompts = await self._aside(context, request.prompts, _split, request.prompts)
        if is_tiled(request.tiles):
            _check_tiled(request, prompts)
        pointed = [Pointed().encoding(self.config)] if prompts else []
        finding = await self._finding(context, request, sought) if sought else None
        if finding:
            await finding.begin(*pointed)
            info, features = finding.info, finding.features
        else:
            info, features = await self.encode(context, request.image, *pointed)
        count = len(prompts) * (3 if request.multimask else 1)
        check_masks(count, features.geometry, request.encoding, self.config.logits_side)
        await self._aside(context, request.prompts, self._check, features, prompts)
        found = await finding.result() if finding else {}
        results = await self._pointed_at(context, features, prompts, request)
        results |= await self._encoded(context, features, found, request, count)
        in_order = [results[index] for index in range(len(request.prompts))]
        return pb.SegmentResponse(image=info, results=in_order, model=self.model_in(features.dtype))

    async def SegmentEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> pb.SegmentEverythingResponse:
        """Return masks of everything, named if there are labels, or one panoptic picture.

        Needs REGIONS; SAM for a search of the request's own, and CLIP_DENSE for names. Raises the
        errors of ``Everything``, Overloaded, and those of ``encode``.
        """
        return await Everything(self, self._decoder, context, request).reply()

    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        """Yield what each round of the search finds and withdraws; together, SegmentEverything's.

        Needs SAM, and CLIP_DENSE for names. Raises as SegmentEverything does.
        """
        every = Everything(self, self._decoder, context, request, streams=True)
        async with aclosing(every.updates()) as updates:
            async for update in updates:
                yield update

    async def _aside(
        self,
        context: RequestContext,
        prompts: Sequence[pb.Prompt],
        work: Callable[..., T],
        *args: Any,
    ) -> T:
        """Return ``work(…)``, from a thread unless the prompts are few: it would cost more."""
        if _is_short(prompts):
            return work(*args)
        return await self.workers.run(context.priority, "preprocess", work, *args)

    async def _pointed_at(
        self,
        context: RequestContext,
        features: ImageFeatures,
        prompts: Placed,
        request: pb.SegmentRequest,
    ) -> Results:
        """Answer points, boxes and masks; ``prompts`` are by index in the request.

        Masks of a small picture are encoded in the thread that decodes them, if it may.
        """
        priority, workers = context.priority, self.workers
        size, count = features.geometry, min(len(prompts), self._decoder.size)
        pixels = count * size.width * size.height * (3 if request.multimask else 1)
        pixels *= 4 if request.encoding in (pb.PNG, pb.POLYGONS) else 1
        small, results = self._decoder.may_encode and pixels <= SMALL_PIXELS, Results()

        def encode(logits: MaskLogits) -> list[pb.Mask]:
            with metrics.stage("encode"):
                return [*wire.to_prompt_masks(logits, request.encoding)]

        for group in _groups(prompts, self._decoder.size):
            drawn = self.sam_head.with_logits(features, group.values())
            rough = any(isinstance(prompt, RoughMask) for prompt in group.values())
            asked = await workers.drain(priority, "preprocess", drawn) if rough else [*drawn]
            answers = await self._decoder.segment(
                priority, features, asked, request.multimask, encode if small else None
            )
            for index, answer in zip(group, answers, strict=True):
                made = answer if small else wire.to_prompt_masks(answer, request.encoding)
                counted = context.reply.within(made)
                masks = [*counted] if small else await workers.drain(priority, "encode", counted)
                results[index] = pb.PromptResult(masks=masks, things=[0] * len(masks))
        return results

    def _check(self, features: ImageFeatures, prompts: Placed) -> None:
        for index, prompt in prompts.items():
            with of_part(f"prompt {index}"):
                self.sam_head.check(features, [prompt])

    async def _finding(
        self, context: RequestContext, request: pb.SegmentRequest, sought: Sought
    ) -> Runner[ByPrompt]:
        """Return what finds the objects of texts and examples, in the image and its tiles.

        It raises InvalidRequest if the tiles have too many masks for one answer.
        """

        def check_count(count: int, size: Geometry) -> None:
            check_masks(count, size, request.encoding, self.config.logits_side)

        asked = FindObjects(
            await self._by_image(context, request.image, sought),
            request.min_score if request.HasField("min_score") else None,
            request.exclusive,
            Tiling(request.tiles, self.settings.max_tiles),
            check_count,
        )
        program = asked.program(self.config, self._decoder.terms)
        work = partial(self._decoder.run, context.priority)
        aside = not _is_short(request.prompts)
        return Runner(self, context, request.image, program, work, aside)

    async def _by_image(
        self, context: RequestContext, searched: pb.Image, sought: Sought
    ) -> dict[int, TextPrompt | ExamplePrompt]:
        """Return the prompts; examples in the same image have the same one, or that searched: None.

        Raises InvalidImage and InvalidRequest.
        """
        made = {**sought}
        alike = {index: one for index, one in made.items() if isinstance(one, ExamplePrompt)}
        if not alike:
            return made
        images: dict[str, Any] = {await self._key(context, searched): None}
        for index, prompt in alike.items():
            examples = []
            for number, example in enumerate(prompt.examples):
                with of_part(f"prompt {index}: example {number}"):
                    key = await self._key(context, example.image)
                image = images.setdefault(key, example.image)
                examples.append(replace(example, image=image))
            made[index] = replace(prompt, examples=examples)
        check_images(images, self.settings.max_images)
        return made

    async def _key(self, context: RequestContext, image: pb.Image) -> str:
        source = wire.image_source(image, self.settings.max_image_bytes)
        if isinstance(source, str):
            return source
        return await self.workers.image_key(context.priority, source)

    async def _encoded(
        self,
        context: RequestContext,
        features: ImageFeatures,
        found: ByPrompt,
        request: pb.SegmentRequest,
        count: int,
    ) -> Results:
        """Encode what the prompts find; ``count`` masks come from other prompts."""
        results, encode = Results(), _Encoder(request.encoding)
        count += sum(map(len, found.values()))
        check_masks(count, features.geometry, request.encoding, self.config.logits_side)
        for index, masks in found.items():
            made = context.reply.within(map(encode, masks))
            encoded = await self.workers.drain(context.priority, "encode", made)
            results[index] = pb.PromptResult(masks=encoded, things=[mask.thing for mask in masks])
        return results


def _check_tiled(request: pb.SegmentRequest, prompts: Placed) -> None:
    """Raise InvalidPrompt or InvalidRequest for what is not asked of tiles."""
    for index in prompts:
        raise InvalidPrompt(f"prompt {index}: {NO_PLACE}")
    if request.encoding == pb.LOGITS:
        raise InvalidRequest(NO_LOGITS)


def _is_short(prompts: Sequence[pb.Prompt]) -> bool:
    return sum(prompt.ByteSize() for prompt in prompts) <= SHORT_BYTES


class _Encoder:
    """Encodes masks; a region that several prompts find once, since that takes the most time."""

    def __init__(self, encoding: int):
        self._encoding, self._regions = encoding, dict[int, pb.Mask]()

    def __call__(self, mask: EverythingMask) -> pb.Mask:
        if mask.region is None:
            return wire.to_everything_mask(mask, self._encoding)
        if mask.region not in self._regions:
            self._regions[mask.region] = wire.to_everything_mask(mask, self._encoding)
        made = pb.Mask()
        made.CopyFrom(self._regions[mask.region])
        made.label, made.label_score = mask.label, mask.label_score
        return made


def _split(prompts: Sequence[pb.Prompt]) -> tuple[Sought, dict[int, Prompt | RoughMask]]:
    """Return the prompts with a text or examples, and those with neither, by index."""
    sought, others = dict[int, TextPrompt | ExamplePrompt](), dict[int, Prompt | RoughMask]()
    for index, prompt in enumerate(prompts):
        _check_parts(prompt, index)
        if not (prompt.text or prompt.examples):
            with of_part(f"prompt {index}"):
                others[index] = wire.to_placed(prompt)
            continue
        words = wire.to_text_prompt(prompt)
        sought[index] = words
        if prompt.examples:
            examples = [
                Example(
                    one.image,
                    partial(wire.to_place, one, f"prompt {index}: example {number}"),
                    one.negative,
                )
                for number, one in enumerate(prompt.examples)
            ]
            sought[index] = ExamplePrompt(examples, words.text, words.not_texts, words.where)
    return sought, others


def _check_parts(prompt: pb.Prompt, index: int) -> None:
    """Raise InvalidPrompt for parts that exclude each other, and wrong texts."""
    if prompt.not_texts and not prompt.text:
        raise InvalidPrompt(f"prompt {index} has not_texts but no text: give the text as well")
    if prompt.HasField("mask") and (prompt.text or prompt.examples):
        other = "a text" if prompt.text else "examples"
        raise InvalidPrompt(
            f"prompt {index}: a mask and {other} exclude each other: give each of them a "
            "prompt of its own"
        )
    if prompt.text:
        check_text(prompt.text, f"the text of prompt {index}")
    for text in prompt.not_texts:
        check_text(text, f"a not_text of prompt {index}")


def _groups(prompts: Placed, size: int) -> Iterator[Placed]:
    """Yield groups of prompts, between which other requests get their turn."""
    indices = tuple(prompts)
    for start in range(0, len(indices), size):
        yield {index: prompts[index] for index in indices[start : start + size]}


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``. Raises SettingsError if batches cannot fill."""
    _check(settings)
    return replica.deploy(Segmentation, settings, gpus=0.25)


def _check(settings: Settings) -> None:
    replica.check_batch("max_prompt_batch", settings.max_prompt_batch)
