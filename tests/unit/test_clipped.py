from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from samclip_core.clipped import ClippedConv2d, clip_in_convolutions
from samclip_core.fused import cast_weights, fold_norms
from tests.weights import seeded


def folded_trunk() -> nn.Module:
    trunk = seeded(lambda: timm.create_model("tf_efficientnet_lite0", features_only=True), 0).eval()
    fold_norms(trunk)
    return trunk.requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 24, 1),
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
        lambda: Conv2dSame(8, 24, 3, stride=2),
        lambda: Conv2dSame(8, 8, 5, stride=2, groups=8),
    ],
)
@torch.no_grad()
def test_the_layer_is_the_convolution_and_what_follows_it(layer: Callable[[], nn.Conv2d]) -> None:
    conv = seeded(layer, 0)
    image_BChw = 8 * torch.randn(2, 8, 12, 20)
    expected = nn.functional.relu6(conv(image_BChw))
    assert expected.aminmax() == (0, 6)  # clipped at both ends
    torch.testing.assert_close(ClippedConv2d(conv)(image_BChw), expected)


def test_padding_that_cannot_be_made_even_is_refused() -> None:
    with pytest.raises(ValueError, match="stride 2 and an odd kernel"):
        ClippedConv2d(Conv2dSame(8, 8, 3, stride=3))


@torch.no_grad()
def test_a_network_gives_the_same_maps() -> None:
    trunk = folded_trunk()
    image_B3HW = torch.randn(2, 3, 64, 96)
    maps = trunk(image_B3HW)
    clip_in_convolutions(trunk)
    assert not any(isinstance(part, nn.ReLU6) for part in trunk.modules())
    for clipped, original in zip(trunk(image_B3HW), maps, strict=True):
        torch.testing.assert_close(clipped, original, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 in this processor"
)
@torch.no_grad()
def test_bfloat16_is_clipped_as_well() -> None:
    conv = seeded(lambda: nn.Conv2d(8, 24, 1), 0)
    layers = nn.Sequential(conv, nn.ReLU6())
    cast_weights(layers, torch.bfloat16)
    image_BChw = 8 * torch.randn(2, 8, 12, 20)
    expected = layers(image_BChw.bfloat16())
    clip_in_convolutions(layers)
    assert isinstance(layers[0], ClippedConv2d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layers(image_BChw), expected)


@torch.no_grad()
def test_a_dtype_that_onednn_does_not_know_is_left_alone() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU6()).double()
    clip_in_convolutions(layers)
    assert type(layers[0]) is nn.Conv2d
    assert layers(torch.randn(1, 8, 4, 4).double()).dtype == torch.float64
