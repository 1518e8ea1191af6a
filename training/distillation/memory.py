"""Decide by a device's memory whether a stage keeps its activations or computes them again.

Computing them again in the backward pass (gradient checkpointing) needs a fraction of the memory,
but a third more arithmetic in the parts that learn.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from samclip_core.nn.network import SamClipNet
from training.distillation.objectives import Lesson, MaskLoss
from training.distillation.sampling import Drawn, Sampler
from training.loop import Objective
from training.recipes import Run

log = logging.getLogger(__name__)

LEARNING_BYTES = 16  # of a parameter that learns: gradient, two moments, average; float32
USABLE = 0.8
"""Share of the free memory that activations may fill: the rest is for temporary tensors, weights in
half precision and fragmentation."""


def settle_checkpointing(
    run: Run, stage: int, lesson: Lesson, net: SamClipNet, free_bytes: int
) -> None:
    """Compute activations again only if the stage's largest piece does not fit without.

    ``free_bytes`` is the free memory of the device, on which ``net`` is. Networks that cannot
    compute activations again stay as they are.
    """
    parts = [module for module in net.modules() if hasattr(module, "checkpointing")]
    if not parts:
        return
    _switch(parts, False)
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    room = USABLE * (free_bytes - LEARNING_BYTES * learning)
    needed = largest_piece(run, stage, lesson, net)
    _switch(parts, needed > room)
    way = "computed again" if needed > room else "kept"
    log.info("activations of %.1f GB, room for %.1f GB: they are %s", needed / 1e9, room / 1e9, way)


def _switch(parts: Sequence[nn.Module], checkpointing: bool) -> None:
    for part in parts:
        part.checkpointing = checkpointing  # type: ignore[assignment]


def largest_piece(run: Run, stage: int, lesson: Lesson, net: SamClipNet) -> int:
    """Return the bytes that the stage's largest piece keeps for the backward pass.

    They are measured on one image of each kind, at the largest side and with all rounds of prompts.
    """
    recipe, (kinds, objectives) = run.recipe, lesson
    sam = replace(recipe.sam_batch, images=1, corrected=1.0)
    one = replace(recipe, clip_images=1, named_images=min(1, recipe.named_images), sam_batch=sam)
    largest = replace(kinds, photos=[max(kinds.photos)] if kinds.photos else ())
    drawn = Sampler(replace(run, recipe=one), stage, largest, whole=True)[0].to(run.device)
    masks = sum(len(batch.target_Pmm) for batch in drawn.outlined)
    needed = 0.0
    for objective in objectives:
        images = float(recipe.at_once)
        if objective.names == MaskLoss.names:
            images = sam.at_once * sam.prompts / max(1, masks)
        needed = max(needed, images * kept_bytes(objective, net, drawn))
    return int(needed)


def kept_bytes(objective: Objective[SamClipNet], net: SamClipNet, drawn: Drawn) -> int:
    """Return the bytes of the tensors that autograd keeps for the largest portion's backward pass.

    Weights, and tensors that share their memory, count once or not at all.
    """
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    largest = 0
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for portion in objective.portions(net, drawn):
            largest = max(largest, sum(kept.values()))
            kept.clear()
            del portion
    return largest
