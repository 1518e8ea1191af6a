"""Arithmetic and memory of the networks of a ``vit-b`` merge, counted without running them.

Their tensors have shapes and no content (torch's ``meta`` device). An addition and a multiplication
are two FLOPs. B images, S side of the frame, h w grid, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from samclip_core.config import SamClipConfig
from samclip_core.nn.clip_head import ClipHead
from samclip_core.nn.clip_tower import build_tower, read_tower
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.vit import ImageEncoder

LOGITS = 4  # cells of a mask's logits on a side of a cell of the embedding


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass: of an image by the side of its frame, or of one prompt."""

    encoder: dict[int, float]
    head: dict[int, float]
    clip_teacher: float
    prompt: float


@dataclass(frozen=True)
class Memory:
    """Bytes: what every GPU holds; activations of an image by its frame's side, and of a prompt."""

    held: float
    image: dict[int, float]
    image_checkpointed: dict[int, float]
    prompt: float


def count_forward(config: SamClipConfig, sides: Sequence[int], clip_model: str) -> Forward:
    """Count the FLOPs of the student, of the CLIP teacher at its own size, and of a prompt."""
    with torch.device("meta"):
        net, tower = build(config).eval(), build_tower(clip_model).eval()
        own = tower.image_size
        square_13HW = torch.empty(1, 3, *(own if isinstance(own, tuple) else (own, own)))
    encoder, head = {}, {}
    for side in sides:
        frame = _frame(side)
        encoder[side] = _flops(net.image_encoder, *frame)
        tokens_1Dhw = net.image_encoder(*frame).tokens_BDhw.detach()
        head[side] = _flops(net.clip_head, tokens_1Dhw, frame[1])
    teacher = _flops(read_tower, tower, square_13HW)
    return Forward(encoder, head, teacher, _flops(_ask, net, config))


def estimate_memory(config: SamClipConfig, sides: Sequence[int], clip_model: str) -> Memory:
    """Float32 weights; activations in bfloat16 between float32 sums at the blocks' borders.

    Fused attention keeps no map of all pairs of tokens. An estimate: what the kernels of a GPU keep
    differs by some tenths.
    """
    with torch.device("meta"):
        net, tower = build(config).bfloat16(), build_tower(clip_model)
    student, head = net.image_encoder, net.clip_head
    assert isinstance(student, ImageEncoder)
    assert isinstance(head, ClipHead)
    blocks = [*student.blocks, *head.blocks]
    image, checkpointed = {}, {}
    for side in sides:
        frame = _frame(side)
        tokens_1hwD = student(*frame).tokens_BDhw.permute(0, 2, 3, 1)
        borders = 4 * len(blocks) * tokens_1hwD.numel()
        largest = max(_kept(block, tokens_1hwD.detach().requires_grad_()) for block in blocks)
        image[side] = borders + _kept(net.encode, *frame)
        student.checkpointing = head.checkpointing = True
        checkpointed[side] = borders + largest + _kept(net.encode, *frame)
        student.checkpointing = head.checkpointing = False
    # The student's weights, their moving average, gradients and AdamW's two moments; the teachers.
    teachers = _size(student) + _size(net.mask_decoder) + _size(tower)
    held = 4 * (5 * _size(net) + teachers)
    return Memory(held, image, checkpointed, _kept(_ask, net, config))


def _frame(side: int) -> tuple[Tensor, Tensor]:
    """Pixels and valid size of one image."""
    pixels_13SS = torch.empty(1, 3, side, side, device="meta")
    return pixels_13SS, torch.empty(1, 2, dtype=torch.long, device="meta")


def _ask(net: SamClipNet, config: SamClipConfig) -> tuple[Tensor, Tensor]:
    """One prompt of a point and the logits before it, the embedding's own frame."""
    like = next(net.mask_decoder.parameters())
    sam_1Dhw = like.new_empty(1, config.embed_dim, config.grid, config.grid)
    sparse_1ND = like.new_empty(1, 2, config.embed_dim)
    logits_11mm = like.new_empty(1, 1, LOGITS * config.grid, LOGITS * config.grid)
    index_1 = torch.empty(1, dtype=torch.long, device="meta")
    _, dense_1Dhw = net.prompt_encoder(None, None, logits_11mm)
    return net.mask_decoder.decode(sam_1Dhw, sam_1Dhw, sparse_1ND, dense_1Dhw, index_1)


def _flops(run: Callable[..., object], *arguments: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*arguments)
    return counter.get_total_flops()


def _kept(run: Callable[..., object], *arguments: Any) -> float:
    """Bytes of the tensors that ``run`` keeps for its backward pass, weights not counted."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = run(*arguments)
    sizes = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in kept
        if not _is_weight(tensor) and not _pairs(tensor)
    }
    del answer  # until here its graph holds every storage, so that no two share an address
    return sum(sizes.values())


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def _pairs(tensor: Tensor) -> bool:
    """Whether it is an attention map, which only the unfused formula writes out."""
    return tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
