"""``SamClip``: a checkpoint in one process, with every operation of the services.

T texts, D width, S side of the model frame, H W pixels of the original picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import areas, concepts, everything, zero_shot
from samclip_core.answers import tiles as tiling
from samclip_core.answers.areas import Area, Classify
from samclip_core.answers.examples import (
    Example,
    ExampleVectors,
    Vectors,
    by_image,
    check_examples,
    is_same,
)
from samclip_core.answers.explain import Explain, Label
from samclip_core.answers.find_alike import ExamplePrompt, FindAlike, FindObjects, Known
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.head import Answer, Ask, Head
from samclip_core.answers.instances import Find
from samclip_core.answers.request import NO_TEXTS, Request, check_has_masks, of_part
from samclip_core.answers.rough import RoughMask
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Terms, run
from samclip_core.encoder import Encoders, Image
from samclip_core.engine.base import Engine
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import Crop
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
        self._terms = Terms.of(self.sam_head, PROMPTS_AT_ONCE)
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
                image_D, self._class_embeddings([with_text])[0], self.config.fitted.text_weight
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
        return self._classify(image, Classify(zero_shot.as_texts(labels), top_k), templates)[0]

    def classify_areas(
        self,
        image: Image,
        areas: Sequence[Area],
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> list[list[Score]]:
        """Score each label for each part of a picture, as ``classify``.

        Raises InvalidRequest, with the number of the area, and InvalidLabels.
        """
        return self._classify(image, Classify(zero_shot.as_texts(labels), top_k, areas), templates)

    def _classify(
        self, image: Image, request: Classify, templates: Sequence[str] | None
    ) -> list[list[Score]]:
        text_LD = self._class_embeddings(request.labels, templates)
        features = self.encode(image, request.size(self.config))
        return [*request.scores(features, text_LD, self.config.logit_scale)]

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
        tiles: tiling.Tiles = 0,
        exclusive: bool = False,
    ) -> list[list[EverythingMask]]:
        """Return the objects of each text or of examples, best score first; none if none is there.

        Objects whose ``label_score`` is below ``min_score`` are left out (None: the default, 0 to
        1). Each text is judged alone; if ``exclusive``, a pixel belongs to the text with the best
        score there, and masks that lose half of theirs are left out. With ``tiles``, each of so
        many along the longer side is searched as well (-1: as many as a large picture needs), or
        those given with their features; the prompts have neither points nor boxes then. Raises
        InvalidLabels, InvalidPrompt and InvalidRequest.
        """
        several = [prompts] if isinstance(prompts, str) else prompts
        asked = [TextPrompt(each) if isinstance(each, str) else each for each in several]
        if tiling.is_tiled(tiles) and any(each.where for each in asked):
            raise InvalidPrompt(tiling.NO_PLACE)
        words = {
            index: text
            for index, each in enumerate(asked)
            if (text := each.words if isinstance(each, ExamplePrompt) else each)
        }
        features, parts = self.encode(image), self._tiles(image, tiles)
        alike = dict[int, FindAlike]()
        for index, each in enumerate(asked):
            if isinstance(each, ExamplePrompt):
                with of_part(f"prompt {index}"):
                    known = self._known(each.examples, image, features)
                alike[index] = FindAlike(known, min_score, each.where)
        request = FindObjects(Find(words, min_score, exclusive), alike)
        if not parts:
            found = self._answer(features, request)
        else:
            in_parts = tiling.InParts()
            for crop, part in ((None, features), *parts):
                for _ in in_parts.add(self._answer(part, request), crop):
                    pass
            found = in_parts.found
        return [[*found[index]] for index in range(len(asked))]

    def _tiles(
        self, image: Image, tiles: tiling.Tiles, size: int = 0
    ) -> list[tuple[Crop, ImageFeatures]]:
        """Return the tiles of a picture with their features.

        Raises InvalidRequest for too many or too small tiles, or a number of tiles of features.
        """
        if not isinstance(tiles, int):
            return [*tiles]
        tiling.check_tiles(tiles, tiling.MAX_TILES)
        if not tiling.is_tiled(tiles):
            return []
        if isinstance(image, ImageFeatures):
            raise InvalidRequest(
                "tiles are encoded on their own: pass the image, or the features of each tile"
            )
        side, image_HW3 = size or self.config.image_size, read(image, self.limits)
        height, width = image_HW3.shape[:2]
        crops = tiling.tiles_of(height, width, tiles, side, tiling.MAX_TILES)
        return [(crop, self.encode(crop.of(image_HW3), side)) for crop in crops]

    def _known(
        self, examples: Sequence[Example], image: Image, features: ImageFeatures
    ) -> list[Known]:
        """Return the examples' vectors, for a search of an image that has these features."""
        here = [is_same(example.image, image) for example in examples]
        own = zip(examples, here, strict=True)
        taken = [replace(one, image=features) if same else one for one, same in own]
        vectors = self.example_vectors(taken)
        negative = [example.negative for example in examples]
        return [*map(Known, vectors, negative, here)]

    def example_vectors(self, examples: Sequence[Example]) -> list[Vectors]:
        """Return the vectors of each example; an image that several share is encoded once.

        Raises InvalidPrompt and InvalidRequest, with the number of the example.
        """
        check_examples(example.negative for example in examples)
        found: dict[str, Vectors] = {}
        for image, places in by_image(examples):
            vectors = self._answer(image, ExampleVectors(places))
            found |= zip(places, vectors, strict=True)
        return [found[f"example {index}"] for index in range(len(examples))]

    def segment_text(
        self,
        image: Image,
        labels: Sequence[str],
        background: bool = False,
        refine: bool = False,
        tiles: tiling.Tiles = 0,
    ) -> SemanticMap:
        """Assign one of the labels to every pixel; with ``background``, possibly none.

        ``refine`` sharpens the outlines with the SAM head. ``tiles`` as in ``find``, and not with
        ``refine``. Raises InvalidLabels and InvalidRequest.
        """
        asked = SegmentText(zero_shot.as_texts(labels), background, refine)
        size = asked.size(self.config)
        if not (crops := self._tiles(image, tiles, size)):
            return self._answer(image, asked)
        if refine:
            raise InvalidRequest(tiling.NO_REFINING)
        whole = self.encode(image, size)
        tiling.check_mosaic([crop for crop, _ in crops], len(asked.texts), whole)
        return self._answer(whole, tiling.SegmentTiles(asked, [(None, whole), *crops]))

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
        return self._answer(image, Ask(head, parameters))

    def segment_everything(
        self,
        image: Image,
        points_per_side: int | None = None,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        tiles: tiling.Tiles = 0,
    ) -> list[EverythingMask]:
        """Find all objects, largest first.

        ``points_per_side`` is that of the finest grid, by default the checkpoint's. ``labels``, or
        a vocabulary of ``samclip_core.answers.vocabularies``, name each mask whose most likely
        label has at least the share ``min_label_score``. ``tiles`` as in ``find``. Raises
        InvalidLabels and InvalidRequest.
        """
        points, texts = points_per_side or self.config.points_per_side, zero_shot.as_texts(labels)
        request = everything.Everything(points, texts, vocabulary, min_label_score)
        request.check_outputs(self.config)
        names = request.names
        namer = request.namer(self._class_embeddings(names), self.config) if names else None
        parts: list[tuple[Crop | None, ImageFeatures]] = [(None, self.encode(image))]
        parts += self._tiles(image, tiles)
        if not request.by_regions(self.config):
            search = everything.Search(self._terms, everything.settings_of(self.config))
            for crop, features in parts:
                for steps in search.rounds(features, points, crop):
                    run(steps, self.sam_head)
            every = everything.largest_first(search.found)
            return [namer.name(one.mask, one.features) if namer else one.mask for one in every]
        each = ((crop, everything.of_regions(self.regions(of), namer)) for crop, of in parts)
        if len(parts) == 1:
            return [mask for _, masks in each for mask in masks]
        found = tiling.of_parts(tiling.place(masks, crop) for crop, masks in each)
        return [one.mask for one in found]

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
            steps = asked.steps(features, NO_TEXTS, self.config, self._terms)
            packed = np.frombuffer(run(steps, self.sam_head).pack(), np.uint8)
            known = self._with_regions[features] = replace(features, regions_N=packed)
        return known

    def _answer(self, image: Image, request: Request[T]) -> T:
        """Answer a request about a picture, from its features to the last step."""
        request.check_outputs(self.config)
        features = self.encode(image, request.size(self.config))
        request.check(features.geometry)
        if "REGIONS" in request.outputs(self.config):
            features = self.regions(features)
        parts = [texts for texts in (request.texts, request.shared_texts) if texts]
        rows = [self._class_embeddings(texts) for texts in parts]
        text_XD = np.concatenate(rows) if rows else NO_TEXTS
        return run(request.steps(features, text_XD, self.config, self._terms), self.sam_head)

    def add_concept(self, name: str, examples: Sequence[Example]) -> None:
        """Name what the examples show: "concept:NAME" then stands for a label or a text here.

        Raises InvalidLabels, InvalidPrompt and InvalidRequest.
        """
        concepts.check_name(name)
        vectors, negative = self.example_vectors(examples), [one.negative for one in examples]
        self._concepts[name], _ = concepts.of_examples(
            vectors, negative, self.config.fitted.concepts
        )

    def _class_embeddings(
        self, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        texts = concepts.texts_in(labels)
        if len(texts) == len(labels):
            return self.embed_labels(labels, templates)
        text_TD = self.embed_labels(texts, templates) if texts else NO_TEXTS
        return concepts.among_texts(labels, self._concepts, text_TD)
