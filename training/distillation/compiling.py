"""Compile the blocks of a stage's networks where that is faster, which is measured on the device.

Compiling fuses what a block does between its matrix products, and allows attention whose heads are
not widened for the positions (``attend_flexible``). On a CPU, networks run as they are.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from samclip_core.nn.network import SamClipNet
from samclip_core.nn.vit import RelPosAttention
from training import workers
from training.distillation.objectives import Lesson
from training.distillation.sampling import Sampler
from training.recipes import Run

log = logging.getLogger(__name__)

_BLOCK = re.compile(r"(.*\.)?(res)?blocks\.\d+")
WAYS = {
    "as they are": (False, False),
    "compiled": (True, False),
    "with flexible attention": (True, True),
}
"""The ways to run blocks: whether they are compiled, and whether attention is flexible."""
SHAPES = 64
"""Most shapes of one kind of block that are compiled: sides, batches, with gradients or without."""
AGREED = 0.02
"""Most relative difference of a gradient's length to that of the networks as they are."""


@dataclass(frozen=True)
class Trial:
    """A piece of every loss, forward and backward: its seconds, and the length of its gradient."""

    seconds: float
    norm: float


def blocks_of(nets: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the blocks of networks: of a ViT, of MobileSAM's encoder, or of a CLIP head."""
    for net in nets:
        yield from (module for name, module in net.named_modules() if _BLOCK.fullmatch(name))


def run_blocks_as(way: str, nets: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Set how the blocks of networks run; ``way`` is one of ``WAYS``."""
    compiled, flexible = WAYS[way]
    torch._dynamo.config.recompile_limit = SHAPES
    # A block that cannot be compiled runs as it is.
    torch._dynamo.config.suppress_errors = True
    for net in nets:
        for module in net.modules():
            if isinstance(module, RelPosAttention):
                module.flexible = flexible
    for block in blocks_of(nets):
        block._compiled_call_impl = None
        if compiled:
            block.compile(backend=backend, dynamic=False)


def trial_of(run: Run, stage: int, lesson: Lesson, net: SamClipNet) -> Callable[[], Trial]:
    """Return a trial with a piece of each loss, at the largest side; its gradients are dropped."""
    recipe, kinds = run.recipe, lesson.kinds
    few = replace(
        recipe,
        clip_images=min(recipe.at_once, recipe.clip_images),
        named_images=min(recipe.at_once, recipe.named_images),
        sam_batch=replace(recipe.sam_batch, images=recipe.sam_batch.at_once),
    )
    largest = replace(kinds, photos=[max(kinds.photos)] if kinds.photos else ())
    drawn = Sampler(replace(run, recipe=few), stage, largest, whole=True)[0].to(run.device)

    def trial() -> Trial:
        start = time.perf_counter()
        for objective in lesson.objectives:
            for portion in objective.portions(net, drawn):
                portion.loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).item()  # waits for the device
        net.zero_grad(set_to_none=True)
        return Trial(time.perf_counter() - start, norm)

    return trial


def settle_compiling(
    nets: Sequence[nn.Module],
    trial: Callable[[], Trial],
    device: torch.device,
    backend: str = "inductor",
) -> str:
    """Run the blocks in the fastest of the ways that give the same gradient; return that way.

    Every worker calls this; worker 0 chooses.
    """
    tried = dict[str, Trial]()
    for way in WAYS:
        run_blocks_as(way, nets, backend)
        trial()  # compiles
        tried[way] = trial()
    plain = tried["as they are"].norm
    equal = {way: one for way, one in tried.items() if abs(one.norm - plain) <= AGREED * plain}
    fastest = min(equal, key=lambda way: equal[way].seconds)
    number = torch.tensor([*WAYS].index(fastest), device=device)
    workers.share([number])
    best = [*WAYS][int(number)]
    run_blocks_as(best, nets, backend)
    times = ", ".join(f"{way} {one.seconds:.3f} s" for way, one in tried.items())
    log.info("blocks run %s; a piece of each loss took: %s", best, times)
    return best
