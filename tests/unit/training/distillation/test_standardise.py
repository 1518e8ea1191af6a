import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.distillation.standardise import PhiS, hadamard

WIDTHS = [1, 2, 4, 12, 20, 24, 48, 64, 72]


def correlated(width: int, seed: int, count: int = 400) -> Tensor:
    """Return correlated features with a large mean, different scales and constant channels."""
    random = torch.Generator().manual_seed(seed)
    spread_D = torch.logspace(-2, 2, width) * (torch.arange(width) % 5 != 4)
    mixing_DD = torch.randn(width, width, generator=random)
    features_ND = torch.randn(count, width, generator=random) * spread_D
    return features_ND @ mixing_DD + 30 * torch.randn(width, generator=random)


@given(st.sampled_from(WIDTHS), st.integers(0, 1000))
def test_channels_have_mean_0_and_all_the_same_variance_1(width: int, seed: int):
    features_ND = correlated(width, seed)
    standard = PhiS.fit(features_ND.split(90))
    standard_ND = standard.double()(features_ND.double())
    # The parameters are float32, which limits the precision of the mean.
    rounding = 1e-6 * features_ND.abs().max() / standard.scale
    assert standard_ND.mean(dim=0).abs().max() < 1e-4 + rounding
    torch.testing.assert_close(
        standard_ND.var(dim=0, correction=0).float(), torch.ones(width), atol=1e-3, rtol=0
    )


def test_distances_keep_their_proportions():
    """Unlike whitening, the transformation scales all distances by the same factor."""
    features_ND = correlated(48, 3)
    standard = PhiS.fit([features_ND])
    ratio_MN = torch.cdist(features_ND[:9], features_ND[9:]) / torch.cdist(
        standard(features_ND)[:9], standard(features_ND)[9:]
    )
    torch.testing.assert_close(ratio_MN, standard.scale.expand(ratio_MN.shape), atol=0, rtol=1e-3)


def test_maps_are_standardised_cell_by_cell():
    features_ND = correlated(12, 4)
    standard = PhiS.fit([features_ND])
    maps_BDhw = features_ND[:30].view(2, 3, 5, 12).permute(0, 3, 1, 2)
    expected_BDhw = standard(features_ND[:30]).view(2, 3, 5, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(standard(maps_BDhw), expected_BDhw)


def test_it_is_a_state_and_nothing_to_learn():
    standard = PhiS.fit([correlated(24, 5)])
    again = PhiS(24)
    again.load_state_dict(standard.state_dict())
    features_ND = correlated(24, 6)
    assert torch.equal(again(features_ND), standard(features_ND))
    assert not list(standard.parameters())


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 72, 128, 256, 384, 512, 640, 768, 1024])
def test_hadamard_matrices_are_signs_with_orthogonal_rows(order: int):
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 28, 100])
def test_an_order_without_a_known_matrix_is_refused(order: int):
    with pytest.raises(ValueError, match="no Hadamard matrix"):
        hadamard(order)


@pytest.mark.parametrize("features", [[], [torch.ones(5, 4)]])
def test_features_that_say_nothing_are_refused(features: list[Tensor]):
    with pytest.raises(ValueError, match="standardise"):
        PhiS.fit(features)
