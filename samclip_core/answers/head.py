"""A head of one's own: a class that answers questions from the encoding of a picture.

T texts, D width.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isgenerator
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.request import Output, Request
from samclip_core.answers.steps import Decode, Steps, Terms
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray
from samclip_core.types import ImageFeatures, MaskSet, Prompt

TAKEN = frozenset({"image", "head", "parameters", "encoding", "model"})
"""Fields of a request, which no parameter of a head may be called."""

Answer = dict[str, Any]
Answering = Generator[Decode | None, list[MaskSet], Answer]


class HeadModel(Protocol):
    """What a head may use of its checkpoint, in its methods: ``SamClip`` has it too."""

    config: SamClipConfig
    digest: str

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of texts as they are: T×D, of length 1."""

    def segment(
        self, image: ImageFeatures, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        """Return the masks of each prompt. Needs the output SAM. Raises InvalidPrompt."""


class Head:
    """A head of one's own, whose docstring is its description in the API document.

    A subclass defines ``answer``, and what else differs from here. One thread at a time calls a
    head, so it needs no locks. ``samclip serve --head FILE.py:CLASS`` serves it.
    """

    outputs: Sequence[Output] = ("CLIP_POOLED",)
    """The outputs of the image encoder that ``answer`` reads; ``load`` may set others."""
    Parameters: Any = None
    """The parameters of a request: a Pydantic model or a dataclass, or None without any."""
    classes: Sequence[str] = ()
    """The classes that its answers name, if it has a fixed list of them."""

    def load(self, model: HeadModel) -> None:
        """Prepare for a checkpoint, once per process. Any error keeps the head from answering."""

    def texts(self, parameters: Any) -> Sequence[str]:
        """Return labels that the checkpoint embeds, with its templates, as features.text_TD."""
        return ()

    def size(self, config: SamClipConfig) -> int:
        """Return the side of the model frame in pixels, by default that of our own heads."""
        if {"SAM", "REGIONS"}.intersection(self.outputs):
            return config.image_size
        return config.size_of("semantic" if "CLIP_DENSE" in self.outputs else "classify")

    def answer(self, features: ImageFeatures, parameters: Any) -> Answer | Answering:
        """Return what JSON can hold: texts, finite numbers, lists and dictionaries.

        It may also contain masks (bool arrays H×W of the picture's size, ``EverythingMask``),
        arrays (float16, float32, int8, uint8) and pictures (PIL). Long work is a generator that
        yields None between its steps and returns the answer: it stops with its deadline. An
        InvalidRequest reaches the caller; any other error is logged, and its caller gets 500.
        """
        raise NotImplementedError


def check(head: Head) -> None:
    """Raise TypeError for a head without an answer method, or with a wrong declaration."""
    unknown = set(head.outputs) - set(get_args(Output))
    if unknown or isinstance(head.outputs, str) or not head.outputs:
        raise TypeError(
            f"outputs of {type(head).__name__} is {head.outputs!r}: expected one or more of "
            f'{", ".join(get_args(Output))}, as in ("CLIP_POOLED",)'
        )
    classes = head.classes
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes of {type(head).__name__} is {classes!r:.80}: expected texts")
    fields = getattr(head.Parameters, "model_fields", None) or getattr(
        head.Parameters, "__dataclass_fields__", {}
    )
    if taken := sorted(TAKEN.intersection(fields)):
        raise TypeError(
            f"{type(head).__name__}.Parameters has {', '.join(taken)}, which every request has: "
            "choose another name"
        )
    if type(head).answer is Head.answer:
        raise TypeError(f"{type(head).__name__} has no method answer(self, features, parameters)")


@dataclass(frozen=True, eq=False)
class Ask(Request[Answer]):
    """What does this head answer? ``parameters`` is an instance of its ``Parameters``, or None."""

    head: Head
    parameters: Any = None

    def outputs(self, config: SamClipConfig) -> tuple[Output, ...]:
        return tuple(self.head.outputs)

    @property
    def texts(self) -> Sequence[str]:
        return self.head.texts(self.parameters)

    def size(self, config: SamClipConfig) -> int:
        return self.head.size(config)

    def steps(
        self, features: ImageFeatures, text_XD: FloatArray, config: SamClipConfig, terms: Terms
    ) -> Steps[Answer]:
        answer = self.head.answer(replace(features, text_TD=text_XD), self.parameters)
        if isgenerator(answer):
            answer = yield from answer
        if not isinstance(answer, Mapping):
            raise TypeError(
                f"{type(self.head).__name__}.answer returned {type(answer).__name__}: expected a "
                "dictionary"
            )
        return {**answer}
