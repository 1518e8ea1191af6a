"""Maps of the student and the teacher are compared where both have a picture."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.distillation import objectives
from training.distillation.sampling import Photos

NO_VIEW = torch.empty(0)


@given(
    side=st.integers(1, 30).map(lambda cells: 32 * cells),
    grid=st.integers(1, 64),
    share=st.floats(0.01, 1),
)
def test_cells_that_hold_some_picture_are_valid(side: int, grid: int, share: float):
    """For any grid, such as the 37 cells of DINOv2 over a frame of 1,024 pixels."""
    height = math.ceil(share * side)
    photos = Photos(torch.zeros(1, 3, side, side), torch.tensor([[height, side]]), NO_VIEW)
    valid_hw = objectives._valid_cells(photos, grid)[0]
    tops = torch.arange(grid) * side  # in units of 1 / grid pixels
    assert torch.equal(valid_hw, (tops < height * grid)[:, None].expand(grid, grid))


def test_maps_are_compared_on_the_coarser_grid():
    photos = Photos(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 32]]), NO_VIEW)
    random = torch.Generator().manual_seed(0)
    coarse_BDhw = torch.randn(1, 5, 2, 2, generator=random)
    fine_BDhw = coarse_BDhw.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    fine_BDhw[..., 3:] = 7  # padding
    for pair in ((fine_BDhw, coarse_BDhw), (coarse_BDhw, fine_BDhw)):
        assert objectives.patch_loss(photos, *pair) == pytest.approx(0, abs=1e-6)
