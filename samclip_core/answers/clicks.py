"""One object by clicks: each answer starts from the logits of the last one.

M masks, h w grid of the logits.
"""

from collections.abc import Sequence
from dataclasses import replace

from samclip_core.answers.sam_head import SamHead
from samclip_core.types import Box, ImageFeatures, MaskLogits, MaskSet, Prompt


def added(
    prompt: Prompt,
    points: Sequence[tuple[float, float]] = (),
    negative: Sequence[bool] = (),
    box: Box | None = None,
) -> Prompt:
    """Return the prompt with more points, in pixels of the picture, and with the newest box.

    ``negative`` has a flag per new point.
    """
    return replace(
        prompt,
        points=(*prompt.points, *points),
        negative=(*prompt.negative, *negative),
        box=box or prompt.box,
    )


def refining(prompt: Prompt, answer: MaskLogits) -> Prompt:
    """Return the prompt whose next answer starts from the best mask of this one."""
    return replace(prompt, mask_input_hw=answer.logits_Mhw[0])


class ClickSession:
    """One object of an image by clicks, made by ``SamClip.clicks``."""

    def __init__(self, sam_head: SamHead, features: ImageFeatures):
        self._sam_head = sam_head
        self._features = features
        self._prompt = Prompt()

    def click(self, x: float, y: float, negative: bool = False) -> MaskSet:
        """Click inside the object, or outside it if ``negative``; return the refined mask.

        ``x`` and ``y`` in pixels of the picture. Raises InvalidPrompt, and then changes nothing.
        """
        return self._refine(added(self._prompt, [(x, y)], [negative]))

    def draw(self, box: Box) -> MaskSet:
        """Draw a box around the object; return the refined mask. Raises as ``click`` does."""
        return self._refine(added(self._prompt, box=box))

    def restart(self) -> None:
        """Forget the clicks, for another object."""
        self._prompt = Prompt()

    def _refine(self, prompt: Prompt) -> MaskSet:
        request = self._features, [prompt]
        ((answer,),) = self._sam_head.decode_batch([request], multimask=False)
        self._prompt = refining(prompt, answer)
        return answer.enlarge_all()
