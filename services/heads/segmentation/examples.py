"""The examples of one request: their vectors, from each distinct image fetched once."""

from collections.abc import Mapping, Sequence

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.examples import ExampleVectors, Vectors
from samclip_core.answers.find_alike import Known
from samclip_core.answers.request import of_part
from samclip_core.types import ImageFeatures
from services.batching.decoder import Decoder
from services.heads.head import Head
from services.request import wire
from services.request.context import RequestContext
from services.request.limits import check_images


class Examples:
    """The examples in the prompts of one request, which have passed ``check_prompts``.

    ``prompts`` are by index in the request; ``here``: some are in the image that is searched.
    """

    def __init__(self, head: Head, decoder: Decoder, prompts: Mapping[int, pb.Prompt]) -> None:
        self._head, self._decoder = head, decoder
        self._prompts = prompts
        self._examples = {
            _name(index, number): example
            for index, prompt in prompts.items()
            for number, example in enumerate(prompt.examples)
        }
        self._of_image: dict[str, list[str]] = {}
        """The names of the examples of each image, by its key."""
        self._searched = ""

    @property
    def here(self) -> bool:
        return self._searched in self._of_image

    async def read(self, context: RequestContext, searched: pb.Image) -> None:
        """Find out which images are the same. Raises InvalidImage and InvalidRequest."""
        if not self._examples:
            return
        self._searched = await self._key(context, searched)
        for name, example in self._examples.items():
            with of_part(name):
                key = await self._key(context, example.image)
                self._of_image.setdefault(key, []).append(name)
        check_images(self._of_image.keys() | {self._searched}, self._head.settings.max_images)

    async def _key(self, context: RequestContext, image: pb.Image) -> str:
        source = wire.image_source(image, self._head.settings.max_image_bytes)
        if isinstance(source, str):
            return source
        return await self._head.workers.image_key(context.priority, source)

    async def known(
        self, context: RequestContext, searched: ImageFeatures
    ) -> dict[int, list[Known]]:
        """Return the examples of each prompt; ``searched`` has what they need if they are here."""
        found: dict[str, Known] = {}
        for key, names in self._of_image.items():
            here, features = key == self._searched, searched
            if not here:
                image = self._examples[names[0]].image
                with of_part(names[0]):
                    _, features = await self._head.encode(context, image, ExampleVectors({}))
            for name, vectors in zip(
                names, await self._vectors(context, features, names), strict=True
            ):
                found[name] = Known(vectors, self._examples[name].negative, here)
        return {
            index: [found[_name(index, number)] for number in range(len(prompt.examples))]
            for index, prompt in self._prompts.items()
        }

    async def _vectors(
        self, context: RequestContext, features: ImageFeatures, names: Sequence[str]
    ) -> list[Vectors]:
        """Return the vectors of one image's examples."""
        geometry, priority = features.geometry, context.priority
        places = ((name, wire.to_place(self._examples[name], name, geometry)) for name in names)
        asked = ExampleVectors(dict(await self._head.workers.drain(priority, "decode", places)))
        asked.check(geometry)
        steps = await self._head.steps(context, features, asked, self._decoder.terms)
        return await self._decoder.run(priority, steps)


def _name(prompt: int, example: int) -> str:
    return f"prompt {prompt}: example {example}"
