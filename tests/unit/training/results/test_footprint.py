"""Estimates on the meta device against a real run of a small network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samclip_core.nn.clip_tower import build_tower
from samclip_core.nn.network import build
from tests.clip_models import add_small_clip, named
from tests.tiny import TINY
from training.distillation.losses import sam_distillation_loss
from training.results.footprint import count_forward, estimate_memory

CONFIG = TINY["vit-b"]
SIDES = (64, 128)


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("clip")
    return add_small_clip(directory)


def test_flops_are_those_of_a_real_pass_and_three_times_with_its_gradients(clip_model: str):
    forward = count_forward(CONFIG, SIDES, clip_model)
    net, side = build(CONFIG), SIDES[1]
    frame = torch.zeros(1, 3, side, side), torch.tensor([[side, side]])
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not support the CPU's fused kernel
        with FlopCounterMode(display=False) as counter:
            out = net.image_encoder(*frame)
        assert counter.get_total_flops() == forward.encoder[side]
        with FlopCounterMode(display=False) as counter:
            (out.sam_BDhw.sum() + out.tokens_BDhw.sum()).backward()
        # Twice as many, without the gradient of the pixels, which is not computed.
        patches = 2 * (3 * 16 * 16) * 64 * (side // 16) ** 2
        assert counter.get_total_flops() == 2 * forward.encoder[side] - patches
    assert 4 < forward.encoder[128] / forward.encoder[64] < 16
    assert 4 < forward.head[128] / forward.head[64] < 16
    assert forward.clip_teacher > 0 < forward.prompt


def test_memory_grows_with_the_frame_and_shrinks_with_checkpointing(clip_model: str):
    memory = estimate_memory(CONFIG, SIDES, clip_model)
    for side in SIDES:
        assert memory.image_checkpointed[side] < 0.7 * memory.image[side]
    assert memory.prompt > 0
    assert 3.5 < memory.image[128] / memory.image[64] < 8
    student = sum(p.numel() for p in build(CONFIG).parameters())
    tower = sum(p.numel() for p in build_tower(named(clip_model)).parameters())
    assert 4 * (5 * student + tower) < memory.held < 4 * (6 * student + tower)


def test_memory_is_that_of_a_step_on_a_real_device(clip_model: str):
    """The estimate for bfloat16 is half of the float32 tensors that a step keeps."""
    memory = estimate_memory(CONFIG, SIDES, clip_model)
    net, side = build(CONFIG), SIDES[1]
    frame = torch.zeros(1, 3, side, side), torch.tensor([[side, side]])
    assert memory.image[side] == pytest.approx(kept_by(net, net.encode, *frame) / 2, rel=0.4)


def kept_by(net: nn.Module, run: Callable[..., object], *arguments: object) -> int:
    """Return the bytes that a real pass keeps for its gradients."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(*arguments)
    assert output is not None  # keeps every storage alive until here
    return sum(kept.values())


def test_memory_of_a_prompt_includes_its_loss_in_float32(clip_model: str):
    memory = estimate_memory(CONFIG, SIDES, clip_model)
    net, grid = build(CONFIG), CONFIG.grid
    sam_1Dhw = torch.zeros(1, CONFIG.embed_dim, grid, grid)
    masks_11mm = torch.zeros(1, 1, 4 * grid, 4 * grid)

    def decode() -> tuple[torch.Tensor, torch.Tensor]:
        sparse_1ND = torch.zeros(1, 2, CONFIG.embed_dim)
        _, dense_1Dhw = net.prompt_encoder(None, None, masks_11mm)
        index_1 = torch.zeros(1, dtype=torch.long)
        return net.mask_decoder.decode(sam_1Dhw, sam_1Dhw, sparse_1ND, dense_1Dhw, index_1)

    def compare() -> torch.Tensor:
        logits_14mm, iou_14 = decode()
        taught = torch.zeros_like(logits_14mm), torch.zeros_like(iou_14)
        return sam_distillation_loss(logits_14mm, iou_14, *taught)

    decoded, compared = kept_by(net, decode), kept_by(net, compare)
    assert compared > 1.1 * decoded
    assert memory.prompt == pytest.approx(compared - decoded / 2, rel=0.15)
