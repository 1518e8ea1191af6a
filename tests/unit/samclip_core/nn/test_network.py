"""Networks are built and loaded part by part; a config of no network is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samclip_core.config import Kind, SamClipConfig, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.nn.network import PARTS, SAM_HEAD_PARTS, build, load_net
from tests.tiny import TINY, make_tiny_checkpoint

PAIR = replace(
    TINY["vit-b"],
    kind="pair",
    clip_head=None,
    text=TextConfig(tower="open_clip", model="ViT-S-32-alt"),
    text_dim=256,
)


def _frames(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels_B3SS = 255 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    sizes_B2 = torch.tensor([[size, size // (1 + index)] for index in range(count)])
    return pixels_B3SS, sizes_B2


@pytest.mark.parametrize("config", [*TINY.values(), PAIR], ids=lambda c: c.kind)
def test_encode_shapes_and_lengths(config: SamClipConfig) -> None:
    net = build(config, ["image_encoder", "clip_head"]).eval()
    with torch.inference_mode():
        sam_BDhw, dense_BDhw, pooled_BD, _ = net.encode(*_frames(2, config.image_size))
    assert sam_BDhw.shape == (2, config.embed_dim, config.grid, config.grid)
    assert dense_BDhw.shape[:2] == (2, config.text_dim)
    lengths_Bhw = dense_BDhw.norm(dim=1)
    torch.testing.assert_close(lengths_Bhw[0], torch.ones_like(lengths_Bhw[0]))
    # Half of the second frame is padding, where the head of kind edge returns zeros.
    picture_hw, padding_hw = lengths_Bhw[1].chunk(2, dim=-1)
    torch.testing.assert_close(picture_hw, torch.ones_like(picture_hw))
    torch.testing.assert_close(
        padding_hw, torch.full_like(padding_hw, float(config.kind != "edge"))
    )
    torch.testing.assert_close(pooled_BD.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(TINY["edge"], backbone="tiny"), "an edge has the encoder .*, found tiny"),
        (replace(TINY["vit-b"], clip_head=None), "clip_head None are of no merge"),
    ],
)
def test_a_config_of_no_network_is_refused(config: SamClipConfig, message: str) -> None:
    with torch.device("meta"), pytest.raises(CheckpointError, match=message):
        build(config)


@pytest.mark.parametrize("kind", TINY)
def test_load_gives_what_was_saved(kind: Kind, tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "one", kind)
    net = load_net(tmp_path / "one")
    assert {key.split(".")[0] for key in net.state_dict()} == set(PARTS)
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert not net.training
    assert not any(value.requires_grad for value in net.parameters())


def test_a_head_holds_only_its_parts(tiny_checkpoint: Path) -> None:
    whole, head = load_net(tiny_checkpoint), load_net(tiny_checkpoint, SAM_HEAD_PARTS)
    assert {name for name, _ in head.named_children()} == set(SAM_HEAD_PARTS)
    for key, value in head.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])
