"""One caller's session of clicks: each answer refines the last one."""

from concurrent.futures import ThreadPoolExecutor

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.clicks import added, refining
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.types import ImageFeatures, Prompt
from services.batching import threads
from services.batching.decoder import Decoder
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_encoding, check_masks, check_most


class Clicks:
    """An image, and the prompt for one object of it. ``most`` limits the points of an object."""

    def __init__(self, decoder: Decoder, encoders: ThreadPoolExecutor, most: int):
        self._decoder = decoder
        self._encoders = encoders
        self._most = most
        self._image: tuple[pb.ImageInfo, ImageFeatures] | None = None
        self._prompt = Prompt()

    @property
    def image(self) -> tuple[pb.ImageInfo, ImageFeatures]:
        """The image and its features. Raises InvalidRequest if there is none yet."""
        if self._image is None:
            raise InvalidRequest("no image: the first message of a session has to name one")
        return self._image

    def look_at(self, info: pb.ImageInfo, features: ImageFeatures) -> None:
        """Start again on another image."""
        self._image = info, features
        self._prompt = Prompt()

    async def answer(
        self, context: RequestContext, message: pb.SegmentStreamRequest
    ) -> list[pb.Mask]:
        """Add the message's points and box, and return the masks for all so far, best first.

        Returns no masks for a message without points and box. Raises InvalidPrompt,
        InvalidRequest, DeadlineExceeded and Overloaded.
        """
        _, features = self.image
        check_encoding(message.encoding)
        if message.restart:
            self._prompt = Prompt()
        if not message.points and not message.HasField("box"):
            return []
        check_masks(3 if message.multimask else 1, features.geometry, message.encoding)
        prompt = self._with(message)
        (masks,) = await self._decoder.segment(context, features, [prompt], message.multimask)
        self._prompt = refining(prompt, masks)
        encoded = context.reply.within(wire.to_prompt_masks(masks, message.encoding))
        return await threads.drain(self._encoders, "encode", encoded)

    def _with(self, message: pb.SegmentStreamRequest) -> Prompt:
        count = len(self._prompt.points) + len(message.points)
        advice = "restart with fewer"
        check_most(count, "{} points on one object", self._most, advice, InvalidPrompt)
        box = message.box if message.HasField("box") else None
        new = wire.to_prompt(pb.Prompt(points=message.points, box=box))
        return added(self._prompt, new.points, new.negative, new.box)
