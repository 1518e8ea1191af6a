"""EfficientViT-SAM's sizes are read from its weights, and other files are refused with a reason."""

from dataclasses import replace

import pytest
import torch

from samclip_core.config import VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.efficientvit_sam import EfficientViTConfig
from samclip_core.families.efficientvit_sam.network import EPSILON, EfficientViTEncoder
from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.official_sam import sam_config
from samclip_core.nn.sam_head import cast_weights
from tests.weights import seeded
from training.distillation.teachers import official_sam

L = (32, 64, 128, 256, 512)
PUBLISHED = {  # widths, depths, depth of the neck, million parameters as its page states them
    "l0": (L, (1, 1, 1, 4, 4), 4, 34.8),
    "l1": (L, (1, 1, 1, 6, 6), 8, 47.7),
    "l2": (L, (1, 2, 2, 8, 8), 12, 61.3),
    "xl0": ((*L, 1024), (0, 1, 1, 2, 3, 3), 6, 117.0),
    "xl1": ((*L, 1024), (1, 2, 2, 4, 6, 6), 12, 203.3),
}
SMALL = EfficientViTConfig(
    widths=(4, 4, 8, 8, 16), depths=(1, 1, 1, 1, 1), head=8, neck_width=8, neck_depth=1
)
LAST = "stages.4.1.context_module.main.aggreg.0.1.weight"
State = dict[str, torch.Tensor]


def encoder(size: EfficientViTConfig, width: int = 256) -> State:
    with torch.device("meta"):
        state = EfficientViTEncoder(size, width).state_dict()
    return {f"image_encoder.{key}": value for key, value in state.items()}


def describe(size: EfficientViTConfig) -> SamClipConfig:
    return replace(
        VIT_B,
        kind="pair",
        backbone="efficientvit-sam",
        task_sizes=None,
        networks={"efficientvit": size},
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    widths, depths, neck, millions = PUBLISHED[name]
    size = EfficientViTConfig(
        widths=widths, depths=depths, head=32, neck_width=256, neck_depth=neck
    )
    config = sam_config(encoder(size))
    assert config.networks == {"efficientvit": size}
    assert (config.image_size, config.grid) == (512 if len(widths) == 5 else 1024, 64)
    with torch.device("meta"):
        net = build(replace(config, kind="pair"), SAM_PARTS)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def without(part: str) -> State:
    return {key: value for key, value in encoder(SMALL).items() if f".{part}" not in key}


def with_shape(key: str, *shape: int) -> State:
    return encoder(SMALL) | {f"image_encoder.{key}": torch.empty(shape, device="meta")}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("stages.2."), "stages.3.1.context_module.* is missing, so this is no SAM"),
        (without("stages.4."), "stages.3.1.context_module.* is missing, so this is no SAM"),
        (without("stages.3.1.main.depth_conv"), "keys 2 missing .*stages.3.1.main.depth_conv"),
        (without("stages."), "is missing, so this is no SAM"),
        (without("norm.weight"), "is missing, so this is no SAM"),
        (encoder(SMALL) | {"image_encoder.extra": torch.empty(1)}, "unexpected .*extra"),
        (with_shape("stages.1.0.main.point_conv.norm.weight", 5), "with another shape"),
        # A few bytes that state an encoder of terabytes:
        (with_shape("stages.3.0.main.point_conv.norm.weight", 10**6), "with another shape"),
        (with_shape("stages.0.0.norm.weight", 0), r"widths \(0, 4, 8, 8, 16\)"),
        (with_shape("neck.inputs.0.norm.weight", 0), "expected 5"),
        (with_shape(LAST, 48), "with another shape"),
        (with_shape(LAST, 48, 0, 1, 1), "heads of 0"),
        (with_shape(LAST, 48, 99, 1, 1), "multiples of the heads"),
    ],
)
def test_other_files_are_refused(state: State, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        sam_config(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (4, 8)}, "has 2 stages"),
        ({"head": 0}, "heads of 0"),
        ({"depths": ()}, "expected 5"),
    ],
)
def test_a_config_of_no_such_encoder_is_refused(changes: dict, message: str) -> None:
    config = describe(replace(SMALL, **changes))
    with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
        SamClipConfig.from_json(config.to_json())


def test_every_norm_has_the_publishers_epsilon() -> None:
    """The publisher changes the decoder's too, from 1e-5, which small variances show."""
    net = build(describe(SMALL), SAM_PARTS)
    assert {norm.eps for norm in net.modules() if hasattr(norm, "eps")} == {EPSILON, 1e-15}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precisions_give_nearly_the_same(dtype: torch.dtype) -> None:
    """Also of a neck with large outputs, whose squares are infinite in float16."""
    net = seeded(lambda: EfficientViTEncoder(SMALL, 32), 0).eval()
    pixels_13SS = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    size_12 = torch.tensor([[64, 48]])
    with torch.inference_mode():
        net.neck.output.conv.weight.mul_(1e3)
        net.neck.output.conv.bias.mul_(1e3)
        exact = net(pixels_13SS, size_12).sam_BDhw
        cast_weights(net, dtype)
        with torch.autocast("cpu", dtype):
            found = net(pixels_13SS, size_12).sam_BDhw
    assert torch.cosine_similarity(exact.flatten(), found.float().flatten(), 0) > 0.99


def test_it_teaches_no_student(tmp_path) -> None:
    state = EfficientViTEncoder(SMALL).state_dict()
    torch.save({f"image_encoder.{key}": v for key, v in state.items()}, tmp_path / "sam.pt")
    with pytest.raises(CheckpointError, match="cannot teach"):
        official_sam(tmp_path / "sam.pt")
