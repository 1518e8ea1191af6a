"""Count the arithmetic and memory of a ``vit-b`` merge's networks without running them.

Tensors have shapes but no content (torch's ``meta`` device). An addition and a multiplication are
two FLOPs. B images, S side of the frame, h w grid, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from samclip_core.config import SamClipConfig, TextConfig
from samclip_core.nn.clip_head import ClipHead
from samclip_core.nn.clip_tower import build_tower, read_tower
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.vit import ImageEncoder
from training.distillation.losses import sam_distillation_loss

LOGITS = 4  # mask logits along the side of an embedding cell


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass: per image, by the side of its frame, and per prompt."""

    encoder: dict[int, float]
    head: dict[int, float]
    clip_teacher: float
    prompt: float


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU: ``held`` always, activations per image by frame side, and per prompt.

    ``gradients`` are those of the parts that learn: Head_CLIP alone, or all but the prompt encoder.
    """

    held: float
    gradients: dict[Literal["head", "all"], float]
    image: dict[int, float]
    image_checkpointed: dict[int, float]
    prompt: float


def count_forward(config: SamClipConfig, sides: Sequence[int], clip_model: str) -> Forward:
    """Count the FLOPs of the student, of the CLIP teacher at its input size, and of a prompt."""
    with torch.device("meta"):
        net, tower = build(config).eval(), build_tower(_text(clip_model)).eval()
        own = tower.image_size
        square_13HW = torch.empty(1, 3, *(own if isinstance(own, tuple) else (own, own)))
    encoder, head = {}, {}
    for side in sides:
        frame = _frame(side)
        encoder[side] = _flops(net.image_encoder, *frame)
        tokens_1Dhw = net.image_encoder(*frame).tokens_BDhw.detach()
        head[side] = _flops(net.clip_head, tokens_1Dhw, frame[1])
    teacher = _flops(read_tower, tower, square_13HW)
    return Forward(encoder, head, teacher, _flops(_decode_prompt, net, config))


def estimate_memory(config: SamClipConfig, sides: Sequence[int], clip_model: str) -> Memory:
    """Estimate memory: float32 weights and block inputs, other activations in bfloat16.

    Assumes fused attention, which does not store the attention matrix. The tensors that GPU kernels
    save differ from this by some tens of per cent.
    """
    with torch.device("meta"):
        net, tower = build(config).bfloat16(), build_tower(_text(clip_model))
    student, head = net.image_encoder, net.clip_head
    assert isinstance(student, ImageEncoder)
    assert isinstance(head, ClipHead)
    blocks = [*student.blocks, *head.blocks]
    image, checkpointed = {}, {}
    for side in sides:
        frame = _frame(side)
        tokens_1hwD = student(*frame).tokens_BDhw.permute(0, 2, 3, 1)
        borders = 4 * len(blocks) * tokens_1hwD.numel()
        largest = max(_saved(block, tokens_1hwD.detach().requires_grad_()) for block in blocks)
        image[side] = borders + _saved(net.encode, *frame)
        student.checkpointing = head.checkpointing = True
        checkpointed[side] = borders + largest + _saved(net.encode, *frame)
        student.checkpointing = head.checkpointing = False
    # The student's weights, moving average, gradients and two AdamW moments; the teachers' weights.
    teachers = _size(student) + _size(net.mask_decoder) + _size(tower)
    held = 4 * (5 * _size(net) + teachers)
    learning = _size(student) + _size(head) + _size(net.mask_decoder)
    gradients: dict[Literal["head", "all"], float] = {"head": 4 * _size(head), "all": 4 * learning}
    prompt = _saved(_prompt_loss, net, config, square=True)
    return Memory(held, gradients, image, checkpointed, prompt)


def _text(clip_model: str) -> TextConfig:
    return TextConfig(tower="open_clip", model=clip_model)


def _frame(side: int) -> tuple[Tensor, Tensor]:
    """Return the pixels and the valid size of one image."""
    pixels_13SS = torch.empty(1, 3, side, side, device="meta")
    return pixels_13SS, torch.empty(1, 2, dtype=torch.long, device="meta")


def _decode_prompt(net: SamClipNet, config: SamClipConfig) -> tuple[Tensor, Tensor]:
    """Decode one prompt, a point with previous mask logits, in the embedding's frame."""
    like = next(net.mask_decoder.parameters())
    sam_1Dhw = like.new_empty(1, config.embed_dim, config.grid, config.grid)
    sparse_1ND = like.new_empty(1, 2, config.embed_dim)
    logits_11mm = like.new_empty(1, 1, LOGITS * config.grid, LOGITS * config.grid)
    index_1 = torch.empty(1, dtype=torch.long, device="meta")
    _, dense_1Dhw = net.prompt_encoder(None, None, logits_11mm)
    return net.mask_decoder.decode(sam_1Dhw, sam_1Dhw, sparse_1ND, dense_1Dhw, index_1)


def _prompt_loss(net: SamClipNet, config: SamClipConfig) -> Tensor:
    """Return L_SAM of one prompt; masks and loss are in float32, as in training."""
    logits_14mm, iou_14 = (output.float() for output in _decode_prompt(net, config))
    teacher = torch.empty_like(logits_14mm), torch.empty_like(iou_14)
    return sam_distillation_loss(logits_14mm, iou_14, *teacher)


def _flops(run: Callable[..., object], *arguments: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*arguments)
    return counter.get_total_flops()


def _saved(run: Callable[..., object], *arguments: Any, square: bool = False) -> float:
    """Return the bytes of tensors that ``run`` saves for its backward pass, without weights.

    Square maps are those of attention, which fused kernels do not save, unless ``square`` says that
    they are masks.
    """
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        output = run(*arguments)
    sizes = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in saved
        if not _is_weight(tensor) and (square or not _is_square(tensor))
    }
    del output  # keeps every storage alive until here, so that no two share an address
    return sum(sizes.values())


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
