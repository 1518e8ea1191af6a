"""``SamClip``: a checkpoint in one process, with every operation of the services.

T texts, D width, S side of the model frame, H W pixels of the original picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import areas, concepts, zero_shot
from samclip_core.answers.areas import Area, Classify
from samclip_core.answers.examples import (
    Example,
    Vectors,
    check_examples,
    is_same,
    vectors_of,
)
from samclip_core.answers.explain import Explain, Label
from samclip_core.answers.find_alike import ExamplePrompt
from samclip_core.answers.find_objects import FindObjects
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.head import Answer, Ask, Head
from samclip_core.answers.request import NO_TEXTS, Request, check_has_masks
from samclip_core.answers.rough import RoughMask
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.segment_everything import Everything
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Effect, Encode, Terms, Texts, answer, execute, run
from samclip_core.answers.tiles import Tiling
from samclip_core.encoder import Encoders, Image
from samclip_core.engine.base import Engine
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.io.image import ImageLimits, read
from samclip_core.types import (
    EverythingMask,
    HeatMap,
    ImageFeatures,
    MaskSet,
    Prompt,
    Score,
    SemanticMap,
    TextPrompt,
)

PROMPTS_AT_ONCE = 64
"""Most prompts per question to the SAM head, which splits them by the memory of its device."""
T = TypeVar("T")


class SamClip(Encoders):
    """An image encoder and its heads. Holds no request state, so threads may share it."""

    def __init__(self, directory: Path, engine: Engine, limits: ImageLimits | None = None) -> None:
        """Not for direct use: call ``SamClip.load``."""
        super().__init__(directory, engine, limits)
        self.sam_head = SamHead(self.config, engine)
        self.terms = Terms.of(self.sam_head, PROMPTS_AT_ONCE)
        self._explain = Explain()
        self._explain.load(self)
        self._concepts = dict[str, NDArray[np.float32]]()
        self._with_regions = WeakKeyDictionary[ImageFeatures, ImageFeatures]()

    def embed_image(
        self, image: Image, *, area: Area | None = None, with_text: str = ""
    ) -> NDArray[np.float32]:
        """Return the pooled embedding: D, of length 1, comparable with ``embed_text``.

        ``area`` embeds this part of the picture instead; ``with_text`` returns a query for pictures
        that resemble the picture, or its part, and that this text describes as well. Raises
        InvalidRequest and InvalidLabels.
        """
        if area is None:
            image_D = zero_shot.pooled(self.encode(image, self.config.size_of("retrieval")))
        else:
            features = self.encode(image, self.config.size_of("semantic"))
            (image_D,) = areas.embed_areas(features, [area])
        if with_text:
            image_D = areas.combine(
                image_D, self.class_embeddings([with_text])[0], self.config.fitted.text_weight
            )
        return image_D

    def classify(
        self,
        image: Image,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> list[Score]:
        """Score each label, best first; ``templates`` defaults to the checkpoint's.

        Raises InvalidLabels.
        """
        return self.classify_areas(image, None, labels, templates, top_k)[0]

    def classify_areas(
        self,
        image: Image,
        areas: Sequence[Area] | None,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> list[list[Score]]:
        """Score each label for each part of a picture, as ``classify``; None: for all of it.

        Raises InvalidRequest, with the number of the area, and InvalidLabels.
        """
        templates = None if templates is None else zero_shot.as_texts(templates)
        asked = Classify(zero_shot.as_texts(labels), top_k, areas, templates)
        return self.run(image, asked)

    def segment(
        self, image: Image, prompts: Sequence[Prompt | RoughMask], multimask: bool = True
    ) -> list[MaskSet]:
        """Return the masks of each prompt, best first: three with ``multimask``, else one.

        Raises InvalidPrompt, and InvalidRequest if the checkpoint has no masks or a rough mask
        does not fit.
        """
        check_has_masks(self.config)
        return self.sam_head.segment(self.encode(image), prompts, multimask)

    def find(
        self,
        image: Image,
        prompts: Sequence[str | TextPrompt | ExamplePrompt] | str,
        min_score: float | None = None,
        tiles: int = 0,
        exclusive: bool = False,
    ) -> list[list[EverythingMask]]:
        """Return the objects of each text or of examples, best score first; none if none is there.

        Objects whose ``label_score`` is below ``min_score`` are left out (None: the default, 0 to
        1). Each text is judged alone; if ``exclusive``, a pixel belongs to the text with the best
        score there, and masks that lose half of theirs are left out. With ``tiles``, each of so
        many along the longer side is searched as well (-1: as many as a large picture needs);
        the prompts have neither points nor boxes then. Raises InvalidLabels, InvalidPrompt and
        InvalidRequest.
        """
        several = [prompts] if isinstance(prompts, str) else prompts
        asked = dict[int, TextPrompt | ExamplePrompt]()
        for index, each in enumerate(several):
            asked[index] = TextPrompt(each) if isinstance(each, str) else each
            if not isinstance(each, str | TextPrompt | ExamplePrompt):
                raise InvalidPrompt(
                    f"prompt {index} is {each!r:.80}: expected a text, a TextPrompt or an "
                    "ExamplePrompt"
                )
            if isinstance(each, ExamplePrompt):
                asked[index] = replace(each, examples=_searched(each.examples, image))
        found = self.run(image, FindObjects(asked, min_score, exclusive, Tiling(tiles)))
        return [[*found[index]] for index in range(len(asked))]

    def example_vectors(self, examples: Sequence[Example]) -> list[Vectors]:
        """Return the vectors of each example; an image that several share is encoded once.

        Raises InvalidPrompt and InvalidRequest, with the number of the example.
        """
        check_examples(example.negative for example in examples)
        named = {f"example {index}": example for index, example in enumerate(examples)}
        program = vectors_of(named, None, self.config, self.terms)
        return [*execute(program, Runner(self, None).ask).values()]

    def segment_text(
        self,
        image: Image,
        labels: Sequence[str],
        background: bool = False,
        refine: bool = False,
        tiles: int = 0,
    ) -> SemanticMap:
        """Assign one of the labels to every pixel; with ``background``, possibly none.

        ``refine`` sharpens the outlines with the SAM head. ``tiles`` as in ``find``, and not with
        ``refine``. Raises InvalidLabels and InvalidRequest.
        """
        texts = zero_shot.as_texts(labels)
        return self.run(image, SegmentText(texts, background, refine, Tiling(tiles)))

    def explain(self, image: Image, label: str, others: Sequence[str] = ()) -> HeatMap:
        """Return how well a label fits each pixel: its cosine similarity.

        With ``others``, return its share among them instead, a softmax. Raises InvalidLabels.
        """
        found = self.ask(image, self._explain, Label(label, zero_shot.as_texts(others)))
        return HeatMap(found["map"], found["low"], found["high"])

    def ask(self, image: Image, head: Head, parameters: Any = None) -> Answer:
        """Return the answer of a head of one's own, after ``head.load(model)``.

        ``parameters`` is an instance of ``head.Parameters``. Raises InvalidRequest if the
        checkpoint lacks an output that the head needs, and the head's errors.
        """
        return self.run(image, Ask(head, parameters))

    def segment_everything(
        self,
        image: Image,
        points_per_side: int | None = None,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        tiles: int = 0,
    ) -> list[EverythingMask]:
        """Find all objects, largest first.

        ``points_per_side`` is that of the finest grid, by default the checkpoint's. ``labels``, or
        a vocabulary of ``samclip_core.answers.vocabularies``, name each mask whose most likely
        label has at least the share ``min_label_score``. ``tiles`` as in ``find``. Raises
        InvalidLabels and InvalidRequest.
        """
        points, texts = points_per_side or self.config.points_per_side, zero_shot.as_texts(labels)
        asked = Everything(points, texts, vocabulary, min_label_score, Tiling(tiles))
        return self.run(image, asked)

    def regions(self, image: Image) -> ImageFeatures:
        """Return the features with the regions of the picture, for any number of questions.

        A request that reads regions computes missing ones, once per features. Raises
        InvalidRequest if the checkpoint has no masks.
        """
        asked = FindRegions()
        asked.check_outputs(self.config)
        features = self.encode(image)
        if features.regions_N is not None:
            return features
        if (known := self._with_regions.get(features)) is None:
            steps = asked.steps(features, NO_TEXTS, self.config, self.terms)
            packed = np.frombuffer(run(steps, self.sam_head).pack(), np.uint8)
            known = self._with_regions[features] = replace(features, regions_N=packed)
        return known

    def run(self, image: Image, request: Request[T]) -> T:
        """Run the program of a request about a picture."""
        return Runner(self, image).run(request)

    def add_concept(self, name: str, examples: Sequence[Example]) -> None:
        """Name what the examples show: "concept:NAME" then stands for a label or a text here.

        Raises InvalidLabels, InvalidPrompt and InvalidRequest.
        """
        concepts.check_name(name)
        vectors, negative = self.example_vectors(examples), [one.negative for one in examples]
        self._concepts[name], _ = concepts.of_examples(
            vectors, negative, self.config.fitted.concepts
        )

    def class_embeddings(
        self, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors of labels, as ``embed_labels``, some of which may name concepts."""
        texts = concepts.texts_in(labels)
        if len(texts) == len(labels):
            return self.embed_labels(labels, templates)
        text_TD = self.embed_labels(texts, templates) if texts else NO_TEXTS
        return concepts.among_texts(labels, self._concepts, text_TD)


class Runner:
    """Runs the programs of requests about ``image``, in this process."""

    def __init__(self, model: SamClip, image: Any) -> None:
        self.model, self._image = model, image

    def run(self, request: Request[T]) -> T:
        """Return the answer to a request."""
        return execute(request.program(self.model.config, self.model.terms), self.ask)

    def ask(self, step: Effect) -> Any:
        """Return features, vectors of texts, or masks. Raises their errors."""
        match step:
            case Encode():
                features = self.encode(step)
                with_regions = "REGIONS" in step.outputs
                return self.model.regions(features) if with_regions else features
            case Texts():
                return self.model.class_embeddings(step.labels, step.templates)
        return answer(self.model.sam_head, step)

    def encode(self, step: Encode) -> ImageFeatures:
        """Return the features of the picture, of another one or of a tile."""
        image = self._image if step.image is None else step.image
        if not step.crops:
            return self.model.encode(image, step.side)
        if isinstance(image, ImageFeatures):
            raise InvalidRequest(
                "tiles are encoded on their own: pass the image, not the features of it"
            )
        return self.model.encode(step.crops[0].of(self._pixels_HW3), step.side)

    @cached_property
    def _pixels_HW3(self) -> NDArray[np.uint8]:
        return read(self._image, self.model.limits)


def _searched(examples: Sequence[Example], image: Image) -> list[Example]:
    """Return the examples, without the images that are the one that is searched."""
    same = {id(one) for one in examples if is_same(one.image, image)}
    return [replace(one, image=None) if id(one) in same else one for one in examples]
