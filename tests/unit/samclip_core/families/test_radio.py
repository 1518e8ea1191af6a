"""RADIO's encoder does not depend on padding."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from samclip_core.families.radio import RadioConfig
from samclip_core.families.radio.network import RadioEncoder
from tests.tiny import TINY
from tests.weights import seeded

SIDE, WIDTH = 96, 32


@pytest.fixture(scope="module")
def described() -> RadioConfig:
    return TINY["radio"].networks["radio"]


@pytest.fixture(scope="module")
def encoder(described) -> RadioEncoder:
    return seeded(lambda: RadioEncoder(described, WIDTH), 0)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return 255 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_padding_changes_nothing(encoder, pixels):
    sizes = torch.tensor([[50, SIDE]])  # the fourth row of cells holds two rows of pixels
    other = pixels.clone()
    other[:, :, 50:] = 7
    sam, tokens, _ = encoder(pixels, sizes)
    sam_other, tokens_other, _ = encoder(other, sizes)
    torch.testing.assert_close(sam_other, sam)
    valid = slice(0, 1 + 4 * SIDE // 16)
    torch.testing.assert_close(tokens_other[:, valid], tokens[:, valid])
    whole, *_ = encoder(pixels, torch.tensor([[SIDE, SIDE]]))
    assert (whole - sam)[..., :2, :].abs().max() > 0.01, "the test pictures differ in nothing"
    marked = deepcopy(encoder)  # also cells of padding, which are no keys, may hold anything
    marked.pos_embed.unflatten(1, (SIDE // 16, SIDE // 16))[:, 4:] *= -3
    sam_marked, tokens_marked, _ = marked(pixels, sizes)
    torch.testing.assert_close(sam_marked, sam)
    torch.testing.assert_close(tokens_marked[:, valid], tokens[:, valid])


@torch.inference_mode()
def test_the_normaliser_changes_the_patches_alone(encoder, described, pixels):
    plain = RadioEncoder(replace(described, normalised=False), WIDTH).eval()
    plain.load_state_dict(encoder.state_dict(), strict=False)
    sizes = torch.tensor([[SIDE, SIDE]])
    before, after = plain(pixels, sizes).tokens_BDhw, encoder(pixels, sizes).tokens_BDhw
    assert torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:], encoder.normaliser(before[:, 1:]))
