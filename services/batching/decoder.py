"""SAM's mask decoder on one device, shared by all requests of a replica."""

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from samclip_core.answers.sam_head import SamHead
from samclip_core.answers.steps import Decode, Steps, Terms
from samclip_core.types import ImageFeatures, MaskLogits, MaskSet, Prompt
from services.batching import threads
from services.batching.priority import Priority
from services.batching.queue import Queue, prompts_per_step
from services.batching.threads import Threads
from services.observability import metrics
from services.settings import Settings

T = TypeVar("T")
Encode = Callable[[MaskLogits], Any]


@dataclass(frozen=True, eq=False)
class _DecodeJob:
    """A question to the device, and what its thread does with the logits of each prompt."""

    question: Decode
    encode: Encode | None = None


MAX_QUESTIONS = 512
"""More than a replica can have: Serve limits its requests, and each has one question at a time."""


class Decoder:
    """Batches the prompts of different requests and images. For one event loop.

    Masks stay low-resolution logits here. For a large image, enlarging them takes far longer than
    decoding them, and needs no device.
    """

    def __init__(self, sam_head: SamHead, settings: Settings):
        self.sam_head = sam_head
        self._size = settings.max_prompt_batch
        at_once = 1 if sam_head.engine.batches else sam_head.engine.streams + 1
        self._device = ThreadPoolExecutor(at_once, "device")
        self.may_encode = at_once > 1
        """Whether its threads may also encode masks: a device's only thread must not wait then."""
        self._between = Threads("steps")
        self._device_name = settings.device
        # More would only finish later, each holding its masks in memory.
        self._long = {
            bulk: Queue[Callable[[], Awaitable[Any]], Any](
                _call, part=part, max_queue=MAX_QUESTIONS, at_once=at_once, stops=True
            )
            for bulk, part in ((False, "search"), (True, "bulk_search"))
        }
        # A batch saves a tenth, which is not worth a wait.
        self._batcher = Queue[_DecodeJob, list[Any]](
            self._run,
            part="mask_decoder",
            max_size=self._size,
            max_queue=MAX_QUESTIONS,
            at_once=at_once,
            cost=lambda asked: len(asked.question.prompts),
        )

    def tune(self, size: int) -> None:
        """Set the number of prompts per batch, from the next batch on."""
        self._size = size
        self._batcher.tune(size, 0.0)

    @property
    def size(self) -> int:
        """Number of prompts of one request to decode together."""
        return self._size

    @property
    def terms(self) -> Terms:
        """The thresholds and the prompts per question for work in steps."""
        return Terms.of(self.sam_head, prompts_per_step(self._device_name, self._size))

    async def segment(
        self,
        priority: Priority,
        features: ImageFeatures,
        prompts: Sequence[Prompt],
        multimask: bool,
        encode: Encode | None = None,
    ) -> list[Any]:
        """Return the logits of each prompt, in order: three masks with ``multimask``, else one.

        The prompts have passed ``SamHead.check``. With ``encode``, which must not fail, returns
        what it makes of the logits in the same visit of the device's thread. Raises
        DeadlineExceeded and Overloaded.
        """
        asked = _DecodeJob(Decode(features, prompts, multimask), encode)
        return await self._batcher.submit(asked, priority, work=len(prompts))

    async def run(self, priority: Priority, steps: Steps[T], begun: float = 0.0) -> T:
        """Run work that queries the SAM head in steps; stops when its caller gives up.

        ``begun`` as in ``Claim``. Raises DeadlineExceeded and Overloaded.
        """

        async def ask(question: Decode) -> list[MaskSet]:
            features, prompts = question.features, question.prompts
            self.sam_head.check(features, prompts)
            logits = await self.segment(priority, features, prompts, question.multimask)
            enlarged = (masks.enlarge_all() for masks in logits)
            return await self._between.run(priority, "mask_decode", list, enlarged)

        return await self._between.run_steps(priority, "mask_decode", steps, begun, ask)

    async def run_long(self, priority: Priority, steps: Steps[T], begun: float = 0.0) -> T:
        """Run work of many steps like ``run``, of which few run at once, and tenants take turns.

        All of one decoder is expected to take the same time.
        """
        work: Awaitable[T] = self._long[priority.bulk].submit(
            partial(self.run, priority, steps, begun), priority, begun=begun
        )
        return await work

    def coming(self, priority: Priority) -> AbstractContextManager[None]:
        """Announce long work whose picture is being prepared. Raises the errors of ``run_long``."""
        return self._long[priority.bulk].coming(priority)

    async def close(self) -> None:
        """Finish the queued work, then stop the threads."""
        for queue in self._long.values():
            await queue.close()
        await self._batcher.close()
        self._device.shutdown(wait=False)
        self._between.close()
        vars(self).clear()  # cycles would keep the weights in memory

    async def _run(self, batch: list[_DecodeJob]) -> list[list[Any]]:
        answers = await threads.run(self._device, "mask_decode", partial(self._answer, batch))
        metrics.measure_memory(self._device_name)
        return answers

    def _answer(self, batch: list[_DecodeJob]) -> list[list[Any]]:
        answers: dict[_DecodeJob, list[Any]] = {}
        for multimask in (False, True):
            alike = [asked for asked in batch if asked.question.multimask is multimask]
            requests = [(asked.question.features, asked.question.prompts) for asked in alike]
            decoded = self.sam_head.decode_batch(requests, multimask)
            for asked, logits in zip(alike, decoded, strict=True):
                answers[asked] = [*map(asked.encode, logits)] if asked.encode else logits
        return [answers[asked] for asked in batch]


async def _call(works: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    return [await work() for work in works]
