"""Every object that the prompts of one request mean: texts, examples, or both, also in tiles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from samclip_core.answers.examples import ExampleVectors, check_examples, vectors_of
from samclip_core.answers.find_alike import ExamplePrompt, FindAlike, Known
from samclip_core.answers.instances import Find
from samclip_core.answers.request import NO_TEXTS, Needs, Output, Request, of_part, rows_of
from samclip_core.answers.steps import Steps, Terms
from samclip_core.answers.tiles import NO_PLACE, NO_TILES, InParts, Tiling, check_tiles, encodings
from samclip_core.config import SamClipConfig
from samclip_core.errors import InvalidPrompt
from samclip_core.geometry import Crop, FloatArray, Geometry
from samclip_core.types import EverythingMask, ImageFeatures, TextPrompt

ByPrompt = Mapping[int, Sequence[EverythingMask]]
"""The masks of each prompt, the best score first, by its index in the request."""


@dataclass(frozen=True)
class FindObjects(Request[ByPrompt]):
    """Which objects do the prompts of one request mean: texts, examples, or both?

    ``prompts`` are by the index that errors name. One that has examples and a text is searched
    among the masks of its text. ``check_count`` may refuse so many masks in so large a picture,
    before more are found in tiles.
    """

    prompts: Mapping[int, TextPrompt | ExamplePrompt]
    min_score: float | None = None
    exclusive: bool = False
    tiling: Tiling = NO_TILES
    check_count: Callable[[int, Geometry], None] = lambda count, geometry: None

    @cached_property
    def named(self) -> Find:
        """The texts."""
        of_prompt = {
            index: each.words if isinstance(each, ExamplePrompt) else each
            for index, each in self.prompts.items()
        }
        texts = {index: text for index, text in of_prompt.items() if text}
        return Find(texts, self.min_score, self.exclusive)

    @cached_property
    def alike(self) -> dict[int, ExamplePrompt]:
        """The prompts with examples."""
        pairs = self.prompts.items()
        return {index: each for index, each in pairs if isinstance(each, ExamplePrompt)}

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        asked: list[Needs] = [self.named]
        for index, each in self.alike.items():
            asked.append(FindAlike([], masks=[] if index in self.named.prompts else None))
            if any(example.image is None for example in each.examples):
                asked.append(ExampleVectors({}))
        return tuple(dict.fromkeys(output for one in asked for output in one.outputs(config)))

    @property
    def texts(self) -> Sequence[str]:
        return self.named.texts

    @property
    def shared_texts(self) -> Sequence[str]:
        return self.named.shared_texts

    def program(self, config: SamClipConfig, terms: Terms) -> Steps[ByPrompt]:
        self._check()
        texts = self.asked
        encoding = self.encoding(config, texts)
        whole = yield encoding
        if self.named.prompts or not self.alike:  # before other images are encoded
            self.named.check(whole.geometry)
        likes = yield from self._likes(whole, config, terms)
        crops, text_XD = self.tiling.crops(whole.geometry), (yield from rows_of(texts))
        yield None
        found = yield from self._find(likes, whole, text_XD, config, terms)
        if not crops:
            return found
        in_parts = InParts()
        yield from self._add(in_parts, found, None, whole.geometry)
        for crop, of_tile in encodings(crops, encoding):
            tile = yield of_tile
            found = yield from self._find(likes, tile, text_XD, config, terms)
            yield from self._add(in_parts, found, crop, whole.geometry)
        return in_parts.found

    def _check(self) -> None:
        """Check what does not depend on the picture. Raises InvalidRequest."""
        check_tiles(self.tiling.tiles, self.tiling.most)
        for index, each in self.prompts.items() if self.tiling.is_wanted else ():
            if each.where:
                raise InvalidPrompt(f"prompt {index}: {NO_PLACE}")
        self.named.check_texts()  # they go to the backbone with the image
        for index, prompt in self.alike.items():
            with of_part(f"prompt {index}"):
                check_examples(example.negative for example in prompt.examples)

    def _likes(
        self, whole: ImageFeatures, config: SamClipConfig, terms: Terms
    ) -> Steps[dict[int, FindAlike]]:
        """Return the questions of the prompts with examples, whose vectors are known then."""
        examples = {
            f"prompt {index}: example {number}": example
            for index, prompt in self.alike.items()
            for number, example in enumerate(prompt.examples)
        }
        vectors = yield from vectors_of(examples, whole, config, terms)
        likes = dict[int, FindAlike]()
        for index, prompt in self.alike.items():
            known = [
                Known(vectors[f"prompt {index}: example {n}"], one.negative, one.image is None)
                for n, one in enumerate(prompt.examples)
            ]
            likes[index] = FindAlike(known, self.min_score, prompt.where)
            with of_part(f"prompt {index}"):
                likes[index].check(whole.geometry)
        return likes

    def _find(
        self,
        likes: Mapping[int, FindAlike],
        features: ImageFeatures,
        text_XD: FloatArray,
        config: SamClipConfig,
        terms: Terms,
    ) -> Steps[ByPrompt]:
        """Find the objects of the texts, then those of each prompt with examples."""
        of_texts = yield from self.named.steps(features, text_XD, config, terms)
        found = dict(zip(self.named.prompts, of_texts, strict=True))
        opened = dict[int, EverythingMask]()
        for index, alike in likes.items():
            asked = replace(alike, masks=found.get(index), of_regions=opened)
            found[index] = yield from asked.steps(features, NO_TEXTS, config, terms)
        return found

    def _add(
        self, in_parts: InParts, found: ByPrompt, crop: Crop | None, whole: Geometry
    ) -> Steps[None]:
        """Add what a part has, one prompt after the other, so that there are never too many."""
        for index, masks in found.items():
            yield from in_parts.add(index, masks, crop)
            self.check_count(len(in_parts), whole)
