"""Long computations in steps, between which the caller can stop or serve other requests.

A function in steps is a generator. It yields a Question for the SAM head and receives the answer,
or yields None after other work and receives an empty list; it returns its result.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeAlias, TypeVar

from samclip_core.types import ImageFeatures, MaskHead, MaskSet, Prompt

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Question:
    """Prompts of one picture, as ``MaskHead.segment`` takes them."""

    features: ImageFeatures
    prompts: Sequence[Prompt]
    multimask: bool


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


Steps: TypeAlias = Generator[Question | None, list[MaskSet], T]


def advance(steps: Steps[T], answer: list[MaskSet] | None) -> Question | Done[T] | None:
    """Run the next step; ``answer`` is None for the first one."""
    try:
        return next(steps) if answer is None else steps.send(answer)
    except StopIteration as stop:
        return Done(stop.value)


def answer(sam_head: MaskHead, question: Question | None) -> list[MaskSet]:
    """Return the SAM head's answer to a question; no masks if there is none."""
    if question is None:
        return []
    return sam_head.segment(question.features, question.prompts, question.multimask)


def run(steps: Steps[T], sam_head: MaskHead) -> T:
    """Run all steps and return their result."""
    step = advance(steps, None)
    while not isinstance(step, Done):
        step = advance(steps, answer(sam_head, step))
    return step.result


def questions(
    features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool, at_once: int
) -> Iterator[Question]:
    """Split prompts into questions of at most ``at_once``."""
    for start in range(0, len(prompts), at_once):
        yield Question(features, prompts[start : start + at_once], multimask)
