"""A training step of a small ``vit-b`` student: bfloat16, checkpointed blocks, two frames."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from samclip_core.nn.official_clip import load_official_clip
from tests.clip_models import TEXT_DIM, add_small_clip
from tests.official import clip, sharpened, write
from tests.tiny import TINY
from tests.weights import seeded
from training.data.frames import Frame, stacked
from training.distillation.objectives import CLIP, MaskLoss, PhotoLoss, PhotoTeachers, sam_criterion
from training.distillation.sampling import Drawn, Photos
from training.distillation.segmentation import make_batch
from training.distillation.teachers import OpenClipTeacher, SamTeacher, student_from_sam
from training.recipes import Run, vit_b

CONFIG = replace(TINY["vit-b"], text_dim=TEXT_DIM)
SIDE = CONFIG.image_size // 2  # of the photographs


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
    net = student_from_sam(sam_teacher, CONFIG).eval()
    net.image_encoder.checkpointing = net.clip_head.checkpointing = True
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    net.prompt_encoder.load_state_dict(sam_teacher.prompt_encoder.state_dict())
    net.prompt_encoder.requires_grad_(False)
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


def drawn() -> Drawn:
    """Return a step with photographs of another side than SAM's, at which the masks are."""
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    outlined = make_batch(frames(CONFIG.image_size), rngs, CONFIG.image_size, rounds=2)
    pixels_B3SS, sizes_B2 = stacked(frames(SIDE))
    photos = Photos(pixels_B3SS, sizes_B2, {CLIP: pixels_B3SS[..., : SIDE // 2, : SIDE // 2]})
    return Drawn(photos=[photos], outlined=[outlined], clicks=(True,)).to(torch.device("cpu"))


def backward(
    student: SamClipNet, clip_teacher: OpenClipTeacher, sam_teacher: SamTeacher, given: Drawn
) -> dict[str, float]:
    """Backpropagate the losses of a joint step; return them by their names."""
    recipe = replace(vit_b(), clip_images=2, dense_weight=0.5, sam_weight=1.0)
    run = Run(recipe=recipe, config=CONFIG, data="", folder="")
    photos = PhotoLoss(run, PhotoTeachers(clip_teacher, torch.empty(0, TEXT_DIM)))
    shown: dict[str, float] = {}
    for objective in (photos, MaskLoss(run, sam_criterion(run, sam_teacher), recipe.sam_weight)):
        for portion in objective.portions(student, given):
            portion.loss.backward()
            shown |= {name: float(loss) for name, loss in portion.shown.items()}
    return shown


def test_a_joint_step_reaches_every_parameter_and_no_teacher(
    student: SamClipNet, clip_teacher: OpenClipTeacher, sam_teacher: SamTeacher
):
    teachers = torch.nn.ModuleList([clip_teacher, sam_teacher])
    before = {key: value.clone() for key, value in teachers.state_dict().items()}
    learning = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-4)
    losses = backward(student, clip_teacher, sam_teacher, drawn())
    assert losses.keys() == {"clip", "dense", "sam"}
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values()), losses
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
    given, curve = drawn(), []
    for _ in range(6):
        optimiser.zero_grad()
        curve.append(backward(student, clip_teacher, sam_teacher, given))
        optimiser.step()
    for name in ("clip", "sam"):
        assert curve[-1][name] < 0.8 * curve[0][name]
