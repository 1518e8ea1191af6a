"""Decide by a device's memory whether a stage keeps its activations or computes them again.

Computing them again in the backward pass (gradient checkpointing) needs a fraction of the memory,
but a third more arithmetic in the parts that learn.
"""

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from samclip_core.nn.network import SamClipNet
from training import workers
from training.distillation.objectives import Lesson, MaskLoss, NameLoss
from training.distillation.sampling import Drawn, Sampler
from training.distillation.segmentation import Batch
from training.loop import Objective
from training.recipes import Run

log = logging.getLogger(__name__)

LEARNING_BYTES = 16  # of a parameter that learns: gradient, two moments, average; float32
USABLE = 0.8
"""Share of the free memory that activations may fill: the rest is for temporary tensors, weights in
half precision and fragmentation."""


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU; gives back what an earlier stage has left in the cache."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


def settle_checkpointing(run: Run, stage: int, lesson: Lesson, net: SamClipNet, free: int) -> None:
    """Compute activations again only if the stage's largest piece does not fit without.

    ``free`` is the free memory in bytes of the device, on which ``net`` is. Networks that cannot
    compute activations again stay as they are.
    """
    if not any(hasattr(module, "checkpointing") for module in net.modules()):
        return
    compute_again(net, False)
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    room = USABLE * (free - LEARNING_BYTES * learning)
    needed = largest_piece(run, stage, lesson, net)
    compute_again(net, needed > room)
    way = "computed again" if needed > room else "kept"
    log.info("activations of %.1f GB, room for %.1f GB: they are %s", needed / 1e9, room / 1e9, way)


def compute_again(net: SamClipNet, again: bool) -> None:
    """Set whether the parts of a network that can compute activations again do so."""
    for module in net.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = again  # type: ignore[assignment]


def largest_piece(run: Run, stage: int, lesson: Lesson, net: SamClipNet) -> float:
    """Return the bytes that the stage's largest piece keeps for the backward pass.

    They follow from those of one image and of two, at the largest side and with all rounds of
    prompts. Infinite if these do not fit into the device's memory.
    """
    recipe, (kinds, objectives, _) = run.recipe, lesson
    sam = replace(recipe.sam_batch, images=1, corrected=1.0)
    largest = replace(kinds, photos=[max(kinds.photos)] if kinds.photos else ())
    sampler = Sampler(run, stage, largest, whole=True)

    def kept(objective: Objective[SamClipNet], images: int) -> int:
        named = min(images, recipe.named_images)
        few = replace(recipe, at_once=images, clip_images=images, named_images=named, sam_batch=sam)
        sampler.run = replace(run, recipe=few)
        drawn = sampler[0].to(run.device)
        outlined = [_filled(batch, sam.prompts) for batch in drawn.outlined]
        return kept_bytes(objective, net, replace(drawn, outlined=outlined))

    def needed(objective: Objective[SamClipNet]) -> float:
        try:
            one = kept(objective, 1)
            if isinstance(objective, MaskLoss):
                return one * _at_once(recipe.sam_batch.images, sam.at_once)
            named = isinstance(objective, NameLoss)
            of_step = recipe.named_images if named else recipe.clip_images
            images = _at_once(of_step, recipe.at_once)
            # Any number of images shares one copy of the weights in half precision.
            return one + (images - 1) * (kept(objective, 2) - one) if images > 1 else one
        except torch.OutOfMemoryError:
            return math.inf

    # All of them on every worker: that of masks waits for the other workers.
    return max([needed(objective) for objective in objectives])


def _at_once(images: int, most: int) -> int:
    """Return the images in the largest piece of a worker's share of a step's ``images``."""
    return min(most, math.ceil(images / workers.count()))


def _filled(batch: Batch, prompts: int) -> Batch:
    """Return a batch of one image whose masks are repeated until there are ``prompts``."""
    chosen_P = torch.arange(prompts, device=batch.target_Pmm.device) % len(batch.target_Pmm)
    points_PN2, labels_PN = batch.prompts.points_PN2[chosen_P], batch.prompts.labels_PN[chosen_P]
    return replace(
        batch,
        target_Pmm=batch.target_Pmm[chosen_P],
        image_index_P=batch.image_index_P[chosen_P],
        prompts=replace(batch.prompts, points_PN2=points_PN2, labels_PN=labels_PN),
        chance_PR=batch.chance_PR[chosen_P],
    )


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
