import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.dense_models import write_dense
from tests.tiny import TINY
from training.distillation import objectives
from training.distillation.dense import DenseHead, DenseTeacher, PhiS, load_dense_teacher
from training.distillation.objectives import DENSE, Seen, dense_teacher_term, fit_dense
from training.distillation.sampling import Kinds, Photos, Sampler
from training.recipes import Run, debug

SIZE = TINY["edge"].image_size


@pytest.fixture(scope="module")
def run(training_sets: Path) -> Run:
    recipe = replace(debug(), photo_sides=(SIZE,), dtype="float32")
    return Run(recipe=recipe, config=TINY["edge"], data=str(training_sets), folder="")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> DenseTeacher:
    return load_dense_teacher(write_dense(tmp_path_factory.mktemp("dense")))


@pytest.fixture(scope="module")
def standard(run: Run, teacher: DenseTeacher) -> PhiS:
    return fit_dense(run, 1, teacher)


@given(
    side=st.integers(1, 30).map(lambda cells: 32 * cells),
    grid=st.integers(1, 64),
    share=st.floats(0.01, 1),
)
def test_cells_that_hold_some_picture_are_valid(side: int, grid: int, share: float):
    """For any grid, such as the 37 cells of DINOv2 over a frame of 1,024 pixels."""
    height = math.ceil(share * side)
    photos = Photos(torch.zeros(1, 3, side, side), torch.tensor([[height, side]]))
    valid_hw = objectives._valid_cells(photos, grid)[0]
    tops = torch.arange(grid) * side  # in units of 1 / grid pixels
    assert torch.equal(valid_hw, (tops < height * grid)[:, None].expand(grid, grid))


def test_maps_are_compared_on_the_coarser_grid():
    photos = Photos(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 32]]))
    random = torch.Generator().manual_seed(0)
    coarse_BDhw = torch.randn(1, 5, 2, 2, generator=random)
    fine_BDhw = coarse_BDhw.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    fine_BDhw[..., 3:] = 7  # padding
    for pair in ((fine_BDhw, coarse_BDhw), (coarse_BDhw, fine_BDhw)):
        seen = Seen(photos, *[torch.empty(0)] * 6)._replace(dense_BDhw=pair[0], target_BDhw=pair[1])
        assert objectives._dense_loss(nn.Module(), seen) == pytest.approx(0, abs=1e-6)


def loss_of(
    run: Run, head: nn.Module, teacher: DenseTeacher, photos: Photos, tokens_BDhw: Tensor
) -> Tensor:
    """Return the loss of a dense teacher for a student that is only its head."""
    student = nn.ModuleDict({objectives.DENSE_HEAD: head})
    nothing = torch.empty(0)
    seen = Seen(photos, nothing, tokens_BDhw, *[nothing] * 4)
    return dense_teacher_term(run, teacher).loss(student, seen)


def photographs(run: Run, teacher: DenseTeacher) -> Sampler:
    kinds = Kinds(photos=run.recipe.photo_sides, views={DENSE: teacher.view})
    return Sampler(run, 1, kinds, whole=True)


class Constant(nn.Module):
    """A head that predicts the mean of the standardised features, zero."""

    def __init__(self, standard: PhiS) -> None:
        super().__init__()
        self.standard = standard

    def forward(self, tokens_BDhw: Tensor) -> Tensor:
        return torch.zeros(len(tokens_BDhw), len(self.standard.mean_D), 10, 10)


def test_a_dense_teacher_of_any_scale_starts_with_a_loss_of_one(
    run: Run, teacher: DenseTeacher, monkeypatch: pytest.MonkeyPatch
):
    whole = type(teacher).forward
    monkeypatch.setattr(type(teacher), "forward", lambda self, *x: 100 * whole(self, *x))
    standard = fit_dense(run, 1, teacher)
    sampler = photographs(run, teacher)
    losses = [
        loss_of(run, Constant(standard), teacher, photos, photos.pixels_B3SS)
        for step in range(objectives.STANDARDISED_STEPS)
        for photos in sampler[step].to(run.device).photos
    ]
    assert float(torch.stack(losses).mean()) == pytest.approx(1, rel=0.05)


def test_no_gradient_reaches_the_teacher(run: Run, teacher: DenseTeacher, standard: PhiS):
    head = DenseHead(3, standard)
    (photos,) = photographs(run, teacher)[0].to(run.device).photos
    tokens_BDhw = photos.pixels_B3SS[..., ::16, ::16].clone().requires_grad_()
    loss_of(run, head, teacher, photos, tokens_BDhw).backward()
    assert tokens_BDhw.grad is not None
    assert tokens_BDhw.grad.any()
    assert all(parameter.grad.any() for parameter in head.parameters())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
