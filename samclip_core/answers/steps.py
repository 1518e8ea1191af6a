"""Answers as programs, which the library, a service and a batch run.

A program is a generator. It yields what it needs of the world and receives it: the features of a
picture (Encode), the vectors of labels (Texts), masks (Decode). It also yields a Round, after which
its caller can look at what is found so far, or None: a pause, in which the caller can stop or serve
other requests. It returns its result. Work comes after its first pause only.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Self, TypeAlias, TypeVar

from samclip_core.errors import SamClipError
from samclip_core.geometry import Crop
from samclip_core.types import EverythingMask, ImageFeatures, MaskHead, MaskSet, Prompt

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Texts:
    """Labels whose vectors of length 1 are asked for, L×D; None: the checkpoint's templates."""

    labels: Sequence[str]
    templates: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Encode:
    """A picture whose features are asked for, in a frame of ``side`` pixels.

    It is the picture of the request, or ``image``. Of ``crops`` the first is asked for; the program
    asks for the others next. ``texts`` are those that it asks for after this.
    """

    outputs: tuple[str, ...]
    side: int
    texts: Sequence[Texts] = ()
    image: Any = None
    crops: Sequence[Crop] = ()


@dataclass(frozen=True, eq=False)
class Decode:
    """Prompts of one picture, as ``MaskHead.segment`` takes them."""

    features: ImageFeatures
    prompts: Sequence[Prompt]
    multimask: bool


@dataclass(frozen=True, eq=False)
class Round:
    """A search after a part of its work: the share that is done, and the masks so far.

    ``found`` may take time; ``named`` turns one of what it returns into a mask with its label.
    """

    progress: float
    found: Callable[[], Sequence[Any]]
    named: Callable[[Any], EverythingMask]


@dataclass(frozen=True)
class Terms:
    """A SAM head's thresholds, and the most prompts per question."""

    min_predicted_iou: float
    min_stability: float
    at_once: int

    @classmethod
    def of(cls, sam_head: MaskHead, at_once: int) -> Self:
        """Take the thresholds of ``sam_head``."""
        return cls(sam_head.min_predicted_iou, sam_head.min_stability, at_once)


@dataclass(frozen=True, eq=False)
class Done(Generic[T]):
    """The result of the last step."""

    result: T


Effect: TypeAlias = Encode | Texts | Decode | Round
Steps: TypeAlias = Generator[Effect | None, Any, T]
"""A program, or a part of one."""


def advance(steps: Steps[T], answer: Any = None) -> Effect | Done[T] | None:
    """Run the next step; ``answer`` is what the last one asked for, or the error that it got."""
    try:
        if isinstance(answer, BaseException):
            return steps.throw(answer)
        return steps.send(answer)
    except StopIteration as stop:
        return Done(stop.value)


def execute(steps: Steps[T], ask: Callable[[Effect], Any]) -> T:
    """Run all steps and return their result; ``ask`` returns what they ask for."""
    step = advance(steps)
    while not isinstance(step, Done):
        answer = None
        if step is not None:
            try:
                answer = ask(step)
            except SamClipError as error:  # the program knows what the error is about
                answer = error
        step = advance(steps, answer)
    return step.result


def answer(sam_head: MaskHead, step: Effect | None) -> list[MaskSet]:
    """Return the SAM head's answer to a question for masks; no masks to another step."""
    if not isinstance(step, Decode):
        return []
    return sam_head.segment(step.features, step.prompts, step.multimask)


def run(steps: Steps[T], sam_head: MaskHead) -> T:
    """Run steps that ask for nothing but masks."""
    return execute(steps, partial(answer, sam_head))


def gathered(items: Iterator[T]) -> Steps[list[T]]:
    """Return all ``items``, with a pause after each."""
    made = []
    for item in items:
        made.append(item)
        yield None
    return made


def until_asked(steps: Steps[Any], answer: Any) -> Steps[Effect | Done[Any]]:
    """Run the steps to the next that asks for more than masks, and return that step."""
    try:
        step = advance(steps, answer)
        while step is None or isinstance(step, Decode):
            step = advance(steps, (yield step))
    except GeneratorExit:
        steps.close()
        raise
    return step


def questions(
    features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool, at_once: int
) -> Iterator[Decode]:
    """Split prompts into questions of at most ``at_once``."""
    for start in range(0, len(prompts), at_once):
        yield Decode(features, prompts[start : start + at_once], multimask)
