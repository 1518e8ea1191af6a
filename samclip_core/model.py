"""``SamClip``: a checkpoint in one process, with every operation of the services.

T texts, D width, S side of the model frame, H W pixels of the original picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers import areas, concepts, everything, zero_shot
from samclip_core.answers.areas import Area
from samclip_core.answers.classify import Classify
from samclip_core.answers.clicks import ClickSession
from samclip_core.answers.examples import (
    Example,
    ExampleVectors,
    Vectors,
    by_image,
    check_examples,
)
from samclip_core.answers.explain import Explain
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.instances import Find
from samclip_core.answers.request import NO_TEXTS, Request, check_has_masks
from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Terms, run
from samclip_core.engine import load as load_engine
from samclip_core.engine.base import CACHE_DIR, Asked, Engine, EngineName
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Crop, Geometry
from samclip_core.io import checkpoint
from samclip_core.io.image import ImageLimits, Readable, read
from samclip_core.nn import tokenizer
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

if TYPE_CHECKING:
    from samclip_core.nn.network import SamClipNet

TEXTS_AT_ONCE = 64
"""Most texts per run of the text encoder: larger batches are no faster."""
PROMPTS_AT_ONCE = 64
"""Most prompts per question to the SAM head, which splits them by the memory of its device."""
T = TypeVar("T")
Image = Readable | ImageFeatures
"""A file (bytes, or its path), a PIL picture, RGB uint8 H×W×3, or the features that
``SamClip.encode`` returned.

Features are used as they are; the others are encoded at the task's side
(``SamClipConfig.size_of``)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture in the model frame, ready for the encoder: ``pixels_3SS`` RGB uint8."""

    pixels_3SS: NDArray[np.uint8]
    geometry: Geometry


class SamClip:
    """An image encoder and its heads. Holds no request state, so threads may share it."""

    def __init__(self, directory: Path, engine: Engine, limits: ImageLimits | None = None) -> None:
        """Not for direct use: call ``SamClip.load``."""
        self.config = checkpoint.read_config(directory)
        self.digest = checkpoint.digest(directory)
        int8 = checkpoint.graphs(directory).get(checkpoint.INT8_GRAPH, {})
        self._int8_digest = str(int8.get("sha256", ""))
        self.engine = engine
        self.sam_head = SamHead(self.config, engine)
        self._terms = Terms.of(self.sam_head, PROMPTS_AT_ONCE)
        self.limits = limits or ImageLimits()
        self._tokenizer = tokenizer.load(directory)
        # The same labels are used for many pictures, and embedding them is slow.
        self._embedded = lru_cache(maxsize=16)(self._embed_classes)
        self._concepts = dict[str, NDArray[np.float32]]()
        self._with_regions = WeakKeyDictionary[ImageFeatures, ImageFeatures]()

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path = "edge",
        device: str = "cpu",
        dtype: Asked = "auto",
        limits: ImageLimits | None = None,
        engine: EngineName = "auto",
    ) -> Self:
        """Load a bundled checkpoint by name, or one from its directory.

        ``dtype`` is the precision of the image encoder; "auto" takes the fastest one on this
        processor: float32, bfloat16 or int8. The mask decoder runs in the processor's fastest
        floating-point precision, and in float32 if ``dtype`` is "float32". ``engine``
        "auto" runs exported graphs on a CPU, in the faster runtime, and torch on a GPU or if there
        are no graphs. Raises CheckpointError if a file is missing or damaged, or the engine or
        precision is unavailable.
        """
        directory = checkpoint.resolve(name_or_dir)
        loaded = load_engine(
            directory, device, dtype, engine=engine, cache_dir=CACHE_DIR.expanduser()
        )
        return cls(directory, loaded, limits)

    @property
    def dtype(self) -> str:
        """The precision of the image encoder, one of ``samclip_core.engine.base.Dtype``.

        For int8, the first digits of the graph's digest follow, as in "int8:4caf4841", because
        another calibration of the same weights gives other embeddings.
        """
        dtype = self.engine.dtype
        return f"{dtype}:{self._int8_digest[:8]}" if dtype.startswith("int8") else dtype

    @property
    def graphs(self) -> str:
        """The digest of the compiled graphs; empty if torch runs the networks."""
        return self.engine.graphs

    @property
    def net(self) -> "SamClipNet":
        """The torch network, frozen. Raises ValueError if the engine is not torch."""
        net: SamClipNet | None = getattr(self.engine, "net", None)
        if net is None:
            raise ValueError("compiled graphs have no modules: load with engine='torch'")
        return net

    def prepare(self, image: Readable, size: int | None = None) -> Prepared:
        """Read an image and resize it to the model frame; no model runs.

        ``size`` is the side of the frame in pixels, by default the checkpoint's ``image_size``,
        which masks need. Raises InvalidRequest for a side that the encoder cannot read, and the
        errors of ``samclip_core.io.image.read``.
        """
        size = self.config.image_size if size is None else size
        self.config.check_size(size)
        image_HW3 = read(image, self.limits)
        geometry = Geometry(image_HW3.shape[0], image_HW3.shape[1], size)
        return Prepared(geometry.resize(image_HW3), geometry)

    def encode(self, image: Image | Prepared, size: int | None = None) -> ImageFeatures:
        """Encode one picture for any number of calls; features are returned unchanged.

        ``size`` as in ``prepare``; it does not change a picture that is already prepared.
        """
        if isinstance(image, ImageFeatures):
            return image
        prepared = image if isinstance(image, Prepared) else self.prepare(image, size)
        return self.encode_batch([prepared])[0]

    def encode_batch(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        """Encode prepared pictures as one batch, in order; features in float16 or float32.

        Their frames have the same side. A picture's features do not depend on the rest of the
        batch.
        """
        sizes = [(item.geometry.input_height, item.geometry.input_width) for item in batch]
        pixels_B3SS = np.stack([item.pixels_3SS for item in batch])
        encoded = self.engine.encode(pixels_B3SS, np.array(sizes, np.int64))
        columns = [[None] * len(batch) if output is None else output for output in encoded]
        return [
            replace(ImageFeatures(item.geometry, *arrays), dtype=self.dtype)
            for item, *arrays in zip(batch, *columns, strict=True)
        ]

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts without templates: T×D, rows of length 1. Raises InvalidLabels."""
        texts = zero_shot.as_texts(texts)
        tokenizer.check_texts(texts)
        return np.concatenate(
            [
                self.embed_tokens(self.tokenize(texts[start : start + TEXTS_AT_ONCE]))
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        )

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return token ids T×N for ``embed_tokens``; no model runs. Raises InvalidLabels."""
        return self._tokenizer(texts)

    def embed_tokens(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids from ``tokenize``: T×D, rows of length 1."""
        return self.engine.embed_text(ids_TN)

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
        self, image: Image, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        """Return the masks of each prompt, best first: three with ``multimask``, else one.

        Raises InvalidPrompt, and InvalidRequest if the checkpoint has no masks.
        """
        check_has_masks(self.config)
        return self.sam_head.segment(self.encode(image), prompts, multimask)

    def find(
        self,
        image: Image,
        prompts: Sequence[str | TextPrompt] | str,
        min_score: float | None = None,
    ) -> list[list[EverythingMask]]:
        """Return the objects that each text describes, best score first; none if none is there.

        Objects whose ``label_score`` is below ``min_score`` are left out (None: the default, 0 to
        1). Texts of one call compete for the same pixels. Raises InvalidLabels and InvalidPrompt.
        """
        several = [prompts] if isinstance(prompts, str) else prompts
        asked = [TextPrompt(each) if isinstance(each, str) else each for each in several]
        return self._answer(image, Find(dict(enumerate(asked)), min_score))

    def example_vectors(self, examples: Sequence[Example]) -> list[Vectors]:
        """Return the vectors of each example; an image that several share is encoded once.

        Raises InvalidPrompt and InvalidRequest, with the number of the example.
        """
        check_examples(example.negative for example in examples)
        found: dict[int, Vectors] = {}
        for image, places in by_image(examples):
            vectors = self._answer(image, ExampleVectors(places))
            found |= zip(places, vectors, strict=True)
        return [found[index] for index in range(len(examples))]

    def clicks(self, image: Image) -> ClickSession:
        """Return a session on one object of an image, in which each click refines the mask."""
        check_has_masks(self.config)
        return ClickSession(self.sam_head, self.encode(image))

    def segment_text(
        self, image: Image, labels: Sequence[str], background: bool = False, refine: bool = False
    ) -> SemanticMap:
        """Assign one of the labels to every pixel; with ``background``, possibly none.

        ``refine`` sharpens the outlines with the SAM head. Raises InvalidLabels.
        """
        return self._answer(image, SegmentText(zero_shot.as_texts(labels), background, refine))

    def explain(self, image: Image, label: str, others: Sequence[str] = ()) -> HeatMap:
        """Return how well a label fits each pixel: its cosine similarity.

        With ``others``, return its share among them instead, a softmax. Raises InvalidLabels.
        """
        return self._answer(image, Explain([label, *zero_shot.as_texts(others)]))

    def segment_everything(
        self,
        image: Image,
        points_per_side: int | None = None,
        labels: Sequence[str] = (),
        *,
        vocabulary: str = "",
        min_label_score: float | None = None,
        crop_layers: int = 0,
    ) -> list[EverythingMask]:
        """Find all objects, largest first.

        ``points_per_side`` is that of the finest grid, by default the checkpoint's. ``labels``, or
        a vocabulary of ``samclip_core.answers.vocabularies``, name each mask whose most likely
        label has at least the share ``min_label_score``. ``crop_layers`` also searches the
        crops of ``samclip_core.answers.crops``, which are encoded too: ``image`` is then a file or
        an array. Raises InvalidLabels and InvalidRequest.
        """
        points, texts = points_per_side or self.config.points_per_side, zero_shot.as_texts(labels)
        request = everything.Everything(points, texts, vocabulary, min_label_score, crop_layers)
        request.check_outputs(self.config)
        names = request.names
        namer = request.namer(self._class_embeddings(names), self.config) if names else None
        if request.by_regions(self.config):
            return [*everything.of_regions(self.regions(image), namer)]
        search = everything.Search(self._terms, everything.settings_of(self.config))
        for crop, features in self._crops(image, request):
            for steps in search.rounds(features, points, crop):
                run(steps, self.sam_head)
        found = everything.largest_first(search.found)
        return [namer.name(one.mask, one.features) if namer else one.mask for one in found]

    def regions(self, image: Image) -> ImageFeatures:
        """Return the features with the regions of the picture, for any number of questions.

        Whatever reads regions computes them where they are missing, once per features. Raises
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

    def _crops(
        self, image: Image, request: everything.Everything
    ) -> Iterator[tuple[Crop | None, ImageFeatures]]:
        """Yield the features of the picture, then those of its crops."""
        if not request.crop_layers:
            yield None, self.encode(image)
            return
        if isinstance(image, ImageFeatures):
            raise InvalidRequest("crops are encoded on their own: pass the image, not its features")
        image_HW3 = read(image, self.limits)
        for crop in request.crops(*image_HW3.shape[:2]):
            yield crop, self.encode(crop.of(image_HW3) if crop else image_HW3)

    def _answer(self, image: Image, request: Request[T]) -> T:
        """Answer a request about a picture, from its features to the last step."""
        request.check_outputs(self.config)
        features = self.encode(image, request.size(self.config))
        request.check(features.geometry)
        if "REGIONS" in request.outputs(self.config):
            features = self.regions(features)
        texts = request.texts
        text_XD = self._class_embeddings(texts) if texts else NO_TEXTS
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
        templates = self.config.templates if templates is None else zero_shot.as_texts(templates)
        texts = concepts.texts_in(labels)
        if len(texts) == len(labels):
            return self._embedded(tuple(labels), tuple(templates))
        text_TD = self._embedded(tuple(texts), tuple(templates)) if texts else NO_TEXTS
        return concepts.among_texts(labels, self._concepts, text_TD)

    def _embed_classes(
        self, labels: tuple[str, ...], templates: tuple[str, ...]
    ) -> NDArray[np.float32]:
        text_LD = zero_shot.class_embeddings(self.embed_text, labels, templates)
        text_LD.setflags(write=False)  # the cache shares it between calls
        return text_LD
