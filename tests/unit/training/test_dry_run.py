"""A training step of a small ``vit-b`` student: bfloat16, checkpointed blocks, two frames."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from samclip_core.nn.encoder import valid_mask
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.prompt_encoder import PromptEncoder
from tests.clip_models import TEXT_DIM, add_small_clip
from tests.official import clip, sharpened, write
from tests.tiny import TINY
from tests.weights import seeded
from training.data.frames import Frame
from training.data.tensors import on_device
from training.distillation.losses import (
    clip_loss,
    dense_loss,
    embedding_loss,
    sam_distillation_loss,
)
from training.distillation.segmentation import (
    Batch,
    Prompts,
    decode,
    make_batch,
    segment_step,
)
from training.distillation.standardise import PhiS
from training.distillation.teachers import OpenClipTeacher, SamTeacher, student_from_sam

CONFIG = replace(TINY["vit-b"], text_dim=TEXT_DIM)
SIDES = (CONFIG.image_size, CONFIG.image_size // 2)
LAMBDA = 10.0


@pytest.fixture(scope="module")
def clip_teacher(tmp_path_factory: pytest.TempPathFactory) -> OpenClipTeacher:
    directory: Path = tmp_path_factory.mktemp("clip")
    name = add_small_clip(directory)
    file = write(clip(name), directory, "clip.bin")
    return OpenClipTeacher(load_official_clip(f"{name}:{file}"))


@pytest.fixture(scope="module")
def sam_teacher() -> SamTeacher:
    net = sharpened(seeded(lambda: build(CONFIG, SAM_PARTS), 0))
    return SamTeacher(dict(net.named_children()))


@pytest.fixture
def student(sam_teacher: SamTeacher) -> SamClipNet:
    """Return a student as in stage II, with noise, since L_SAM is flat at the teacher's weights."""
    torch.manual_seed(1)
    net = student_from_sam(sam_teacher, CONFIG, checkpointing=True).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    net.prompt_encoder.load_state_dict(sam_teacher.prompt_encoder.state_dict())
    net.prompt_encoder.requires_grad_(False)
    assert net.image_encoder.checkpointing
    assert net.clip_head.checkpointing
    return net


def frames(side: int) -> list[Frame]:
    """Return two frames of noise, the second half padded, with two rectangles each."""
    random = np.random.default_rng(side)
    pixels_B3SS = random.integers(0, 256, (2, 3, side, side)).astype(np.uint8)
    masks_Pmm = np.zeros((2, side // 4, side // 4), np.float32)
    masks_Pmm[0, 2:9, 1:7] = masks_Pmm[1, 1:5, 3:8] = 1
    boxes_P4 = 4 * np.array([[1, 2, 7, 9], [3, 1, 8, 5]], np.float32)
    valid = [(side, side), (side, side // 2)]
    pairs = zip(pixels_B3SS, valid, strict=True)
    return [Frame(pixels, masks_Pmm, boxes_P4, size) for pixels, size in pairs]


def batch(side: int) -> Batch:
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    return on_device(make_batch(frames(side), rngs, side, rounds=2), torch.device("cpu"))


def at_frame(prompt_encoder: PromptEncoder, side: int) -> PromptEncoder:
    """Return a prompt encoder for another frame size, with the same weights."""
    twin = copy(prompt_encoder)
    grid = side // CONFIG.stride
    twin.image_embedding_size, twin.input_image_size = (grid, grid), (side, side)
    return twin


def clip_step(
    net: SamClipNet, clip_teacher: OpenClipTeacher, sam_teacher: SamTeacher, given: Batch
) -> dict[str, Tensor]:
    pixels, sizes = given.pixels_B3SS, given.sizes_B2
    target_BDhw, target_BD = clip_teacher(pixels, sizes)
    with torch.no_grad():
        taught_BDhw = sam_teacher.image_encoder(pixels, sizes).sam_BDhw.float()
    sam_BDhw, dense_BDhw, pooled_BD = net.encode(pixels, sizes)
    standard = PhiS.fit([taught_BDhw.flatten(2).mT.flatten(0, 1)])
    valid_Bhw = valid_mask(sizes, *dense_BDhw.shape[-2:], CONFIG.stride)
    return {
        "clip": clip_loss(pooled_BD.float(), target_BD.float()).mean(),
        "dense": dense_loss(dense_BDhw.float(), target_BDhw, valid_Bhw),
        "embedding": embedding_loss(standard(sam_BDhw.float()), standard(taught_BDhw), valid_Bhw),
    }


def sam_step(net: SamClipNet, teacher: SamTeacher, given: Batch) -> Tensor:
    side = given.pixels_B3SS.shape[-1]
    prompt_encoder = at_frame(net.prompt_encoder, side)
    with torch.no_grad():
        taught_BDhw = teacher.image_encoder(given.pixels_B3SS, given.sizes_B2).sam_BDhw

    def criterion(logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts) -> Tensor:
        heads = at_frame(teacher.prompt_encoder, side), teacher.mask_decoder
        with torch.no_grad():
            taught = decode(*heads, taught_BDhw, given, prompts)
        return sam_distillation_loss(logits_P4mm, iou_P4, *taught)

    sam_BDhw = net.image_encoder(given.pixels_B3SS, given.sizes_B2).sam_BDhw
    return segment_step(prompt_encoder, net.mask_decoder, sam_BDhw, given, (True,), criterion)


@pytest.mark.parametrize("side", SIDES)
def test_a_joint_step_reaches_every_parameter_and_no_teacher(
    student: SamClipNet,
    clip_teacher: OpenClipTeacher,
    sam_teacher: SamTeacher,
    side: int,
):
    teachers = torch.nn.ModuleList([clip_teacher, sam_teacher])
    before = {key: value.clone() for key, value in teachers.state_dict().items()}
    learning = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-4)
    given = batch(side)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = clip_step(student, clip_teacher, sam_teacher, given)
        sum(losses.values()).backward()
        losses["sam"] = sam_step(student, sam_teacher, given)
        (LAMBDA * losses["sam"]).backward()

    assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert name.startswith("prompt_encoder."), name
            assert parameter.grad is None, name
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in teachers.state_dict().items())


def test_steps_lower_both_losses(
    student: SamClipNet, clip_teacher: OpenClipTeacher, sam_teacher: SamTeacher
):
    optimiser = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-4)
    given = batch(SIDES[1])
    curve = []
    for _ in range(6):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            clip = clip_step(student, clip_teacher, sam_teacher, given)["clip"]
            clip.backward()
            sam = sam_step(student, sam_teacher, given)
            sam.backward()
        optimiser.step()
        curve.append((float(clip.detach()), float(sam.detach())))
    assert curve[-1][0] < 0.8 * curve[0][0]
    assert curve[-1][1] < 0.8 * curve[0][1]
