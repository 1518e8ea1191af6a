"""The examples of one request: their vectors, from each distinct image fetched once."""

from collections import defaultdict
from collections.abc import Mapping

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.examples import ExampleVectors, Vectors
from samclip_core.answers.find_alike import Known
from samclip_core.answers.request import of_part
from samclip_core.types import ImageFeatures
from services.batching import threads
from services.batching.decoder import Decoder
from services.heads.head import Head
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_images

Numbers = dict[int, list[int]]
"""The examples of one image: their indices by that of their prompt."""


class Examples:
    """The examples in the prompts of one request, which have passed ``check_prompts``.

    ``prompts`` are by index in the request; ``here``: some are in the image that is searched.
    """

    def __init__(self, head: Head, decoder: Decoder, prompts: Mapping[int, pb.Prompt]) -> None:
        self._head, self._decoder = head, decoder
        self._prompts = prompts
        self._images: dict[str, pb.Image] = {}
        self._numbers: dict[str, Numbers] = defaultdict(lambda: defaultdict(list))
        self._own = ""

    @property
    def here(self) -> bool:
        return self._own in self._images

    async def read(self, searched: pb.Image) -> None:
        """Find out which images are the same. Raises InvalidImage and InvalidRequest."""
        if not self._prompts:
            return
        self._own = await self._key(searched)
        for prompt, message in self._prompts.items():
            for number, example in enumerate(message.examples):
                with of_part(f"prompt {prompt}: example {number}"):
                    key = await self._key(example.image)
                self._images.setdefault(key, example.image)
                self._numbers[key][prompt].append(number)
        others = self._images.keys() - {self._own}
        check_images([self._own, *others], self._head.settings.max_images)

    async def _key(self, image: pb.Image) -> str:
        source = wire.image_source(image, self._head.settings.max_image_bytes)
        if isinstance(source, str):
            return source
        return await threads.image_key(self._head.workers, source)

    async def known(
        self, context: RequestContext, searched: ImageFeatures
    ) -> dict[int, list[Known]]:
        """Return the examples of each prompt; ``searched`` has what they need if they are here."""
        found: dict[tuple[int, int], Vectors] = {}
        for key, image in self._images.items():
            features = searched
            if key != self._own:
                needed = ExampleVectors({})
                with of_part(self._named(key)):
                    _, features = await self._head.encode(context, image, needed)
            found |= await self._vectors(context, features, self._numbers[key])
        here = {
            (prompt, number)
            for prompt, numbers in self._numbers[self._own].items()
            for number in numbers
        }
        return {
            prompt: [
                Known(found[prompt, number], example.negative, (prompt, number) in here)
                for number, example in enumerate(message.examples)
            ]
            for prompt, message in self._prompts.items()
        }

    async def _vectors(
        self, context: RequestContext, features: ImageFeatures, numbers: Numbers
    ) -> dict[tuple[int, int], Vectors]:
        """Return the vectors of one image's examples, by prompt and number."""
        found: dict[tuple[int, int], Vectors] = {}
        for prompt, several in numbers.items():
            examples = self._prompts[prompt].examples
            with of_part(f"prompt {prompt}"):
                places = (
                    (one, wire.to_place(examples[one], one, features.geometry)) for one in several
                )
                asked = ExampleVectors(
                    dict(await threads.drain(self._head.workers, "decode", places))
                )
                asked.check(features.geometry)
                steps = await self._head.steps(context, features, asked, self._decoder.terms)
                vectors = await self._decoder.run(context, steps)
            found |= zip(((prompt, one) for one in several), vectors, strict=True)
        return found

    def _named(self, key: str) -> str:
        prompt, numbers = next(iter(self._numbers[key].items()))
        return f"prompt {prompt}: example {numbers[0]}"
