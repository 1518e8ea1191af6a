"""SAM's mask decoder on one device, shared by all requests of a replica."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from samclip_core.sam_head import SamHead
from samclip_core.types import ImageFeatures, MaskSet, Prompt
from services import deployment, metrics, rpc, threads
from services.batcher import Batcher, batches_at_once
from services.settings import Settings

MASK_BYTES = 2**28
"""Full-size masks held at once: the prompts of a very large image are answered in groups."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Question:
    features: ImageFeatures
    prompts: Sequence[Prompt]
    multimask: bool


class Decoder:
    """Batches prompts of different requests and images. Belongs to one event loop."""

    def __init__(self, sam_head: SamHead, settings: Settings):
        self.sam_head = sam_head
        self._size = settings.max_prompt_batch
        at_once = batches_at_once(settings.device)
        self._device = ThreadPoolExecutor(at_once, "device")
        self._device_name = settings.device
        # Nothing is announced to it: no wait is worth the tenth that a batch saves. Serve bounds
        # the requests of a replica, and each waits for one answer at a time.
        self._batcher = Batcher[_Question, list[MaskSet]](
            self._run,
            part="mask_decoder",
            max_size=self._size,
            max_wait_s=0.0,
            max_queue=deployment.MAX_ONGOING,
            at_once=at_once,
        )

    def tune(self, size: int) -> None:
        """Another number of prompts in a batch, from the next one on."""
        self._size = size
        self._batcher.tune(size, 0.0)

    def at_once(self, features: ImageFeatures, multimask: bool) -> int:
        """How many prompts of one image to ask together: a batch, or fewer of a very large one."""
        return max(1, min(self._size, MASK_BYTES // _mask_bytes(features, multimask)))

    async def segment(
        self, features: ImageFeatures, prompts: Sequence[Prompt], multimask: bool
    ) -> list[MaskSet]:
        """One MaskSet a prompt, in order: three masks each with ``multimask``, else one.

        Raises InvalidPrompt, DeadlineExceeded, Overloaded.
        """
        self.sam_head.check(features, prompts)
        memory = len(prompts) * _mask_bytes(features, multimask) / MASK_BYTES
        return await self._batcher.submit(
            _Question(features, prompts, multimask),
            rpc.urgency.get(),
            cost=max(len(prompts), self._size * memory),
        )

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Whatever else needs the device, between two batches."""
        return await threads.run(self._device, "mask_decode", function, *args, **kwargs)

    async def close(self) -> None:
        """Finish what waits, then stop the thread."""
        await self._batcher.close()
        self._device.shutdown(wait=False)

    async def _run(self, batch: list[_Question]) -> list[list[MaskSet]]:
        answers = await self.run(self._answer, batch)
        metrics.measure_memory(self._device_name)
        return answers

    def _answer(self, batch: list[_Question]) -> list[list[MaskSet]]:
        answers: dict[_Question, list[MaskSet]] = {}
        alone = not self._batcher.crowded
        for multimask in (False, True):
            alike = [question for question in batch if question.multimask is multimask]
            requests = [(question.features, question.prompts) for question in alike]
            found = self.sam_head.segment_batch(requests, multimask, alone)
            answers |= zip(alike, found, strict=True)
        return [answers[question] for question in batch]


def _mask_bytes(features: ImageFeatures, multimask: bool) -> int:
    """Of the full-size masks that answer one prompt."""
    return features.geometry.width * features.geometry.height * (3 if multimask else 1)
