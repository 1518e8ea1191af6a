"""Faster forms of layers give the results of the originals; tests/parity has whole decoders."""

import timm
import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import nn

from samclip_core.nn.sam_head import (
    FusedAttention,
    FusedLayerNorm2d,
    MaskDecoder,
    cast_weights,
    fold_norms,
    use_fused,
)
from tests.weights import seeded


@torch.no_grad()
def test_twins_keep_keys_and_results() -> None:
    original = seeded(
        lambda: nn.ModuleDict(
            {
                "attention": Attention(16, 4, downsample_rate=2),
                "norm": nn.Sequential(LayerNorm2d(8), nn.GELU()),
            }
        ),
        0,
    )
    tokens_PND, map_PChw = torch.randn(3, 5, 16), torch.randn(3, 8, 4, 6)
    attended = original["attention"](tokens_PND, tokens_PND, tokens_PND)
    normed = original["norm"](map_PChw)
    keys = list(original.state_dict())
    use_fused(original)
    assert isinstance(original["attention"], FusedAttention)
    assert [type(layer) for layer in original["norm"]] == [FusedLayerNorm2d, nn.GELU]
    assert list(original.state_dict()) == keys
    torch.testing.assert_close(original["attention"](*[tokens_PND] * 3), attended)
    torch.testing.assert_close(original["norm"](map_PChw), normed)


@torch.no_grad()
def test_folded_norms_change_no_result() -> None:
    trunk = seeded(lambda: timm.create_model("tf_efficientnet_lite0", features_only=True), 0).eval()
    for norm in (part for part in trunk.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    image_B3HW = torch.randn(2, 3, 64, 96)
    maps = trunk(image_B3HW)
    fold_norms(trunk)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in trunk.modules())
    for folded, original in zip(trunk(image_B3HW), maps, strict=True):
        torch.testing.assert_close(folded, original, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_weights_that_are_cast_once_change_no_result() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), LayerNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(6, 4))
    image_B3HW = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layers(image_B3HW)
        cast_weights(layers, torch.bfloat16)
        assert torch.equal(layers(image_B3HW), before)
    kept = {parameter.dtype for parameter in layers[1].parameters()}
    assert (kept, layers[3].weight.dtype) == ({torch.float32}, torch.bfloat16)


WIDTH, GRID = 32, 6


def test_one_prompt_alone_reaches_the_convolutions_channels_last(monkeypatch):
    """With other strides, such as those of a transposed view, every convolution would copy."""
    strides, decoder = [], MaskDecoder(width=WIDTH, heads=4, mlp_dim=64).eval()

    def paint(tokens_PMD, keys_PDhw, behind_PDhw):
        strides.append(keys_PDhw.stride())
        return MaskDecoder._paint(decoder, tokens_PMD, keys_PDhw, behind_PDhw)

    monkeypatch.setattr(decoder, "_paint", paint)
    map_1Dhw = torch.randn(1, WIDTH, GRID, GRID)
    with torch.inference_mode():
        decoder.decode(
            map_1Dhw, map_1Dhw, torch.randn(1, 3, WIDTH), map_1Dhw, torch.zeros(1, dtype=torch.long)
        )
    assert strides == [(GRID * GRID * WIDTH, 1, GRID * WIDTH, WIDTH)]
