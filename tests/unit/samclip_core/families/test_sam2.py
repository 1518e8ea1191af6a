"""SAM 2.1's sizes are read from its weights, and other files are refused with a reason."""

from dataclasses import replace

import pytest
import torch

from samclip_core.config import VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError, InvalidRequest
from samclip_core.families.sam2 import BACKBONE, SIZES
from samclip_core.families.sam2.network import read
from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.official_sam import sam_config

PUBLISHED = {  # width, depths, million parameters of the encoder
    "tiny": (96, (1, 2, 7, 2), 27.2),
    "small": (96, (1, 2, 11, 2), 34.3),
    "base+": (112, (2, 3, 16, 3), 69.1),
    "large": (144, (2, 6, 36, 4), 212.7),
}
State = dict[str, torch.Tensor]


def state_of(width: int, depths: tuple[int, ...]) -> State:
    size = SIZES[width, depths]
    with torch.device("meta"):
        return dict(
            build(
                replace(VIT_B, kind="pair", backbone=BACKBONE, networks={"sam2": size}), SAM_PARTS
            ).state_dict()
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    width, depths, millions = PUBLISHED[name]
    state = state_of(width, depths)
    config = sam_config(state)
    assert (config.networks["sam2"].width, config.networks["sam2"].depths) == (width, depths)
    assert (config.image_size, config.grid, config.logits_side) == (1024, 64, 256)
    assert (config.min_predicted_iou, config.min_stability) == (0.8, 0.95)
    # Without the table of positions, which is larger here than in the publisher's file.
    own = (v for k, v in state.items() if k.startswith("image_encoder") and "positions" not in k)
    assert sum(value.numel() for value in own) / 1e6 == pytest.approx(millions, abs=0.15)
    assert (
        SamClipConfig.from_json(replace(config, kind="pair").to_json()).networks == config.networks
    )


def test_a_frame_of_another_side_is_refused() -> None:
    config = sam_config(state_of(96, (1, 2, 7, 2)))
    with pytest.raises(InvalidRequest, match=r"cannot read a frame of 512 pixels: SAM 2\.1"):
        config.check_size(512)


def without(part: str) -> State:
    return {key: v for key, v in state_of(96, (1, 2, 7, 2)).items() if part not in key}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("blocks.11."), r"stages of \(1, 2, 7, 1\) blocks"),
        (without("blocks."), "none of its published sizes"),
        (without("patches."), "patches.weight' is missing"),
        (
            without("patches.") | {"image_encoder.patches.weight": torch.zeros(())},
            "none of its published sizes",
        ),
        (
            without("blocks.") | {f"image_encoder.blocks.{'1' * 5000}.x": torch.zeros(1)},
            "none of its published sizes",
        ),
    ],
)
def test_other_files_are_refused(state: State, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        sam_config(state)


def table(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "pos_embed' is missing"),
        ({"": table(1, 8, 7, 7)}, "pos_embed_window' is missing"),
        ({"": table(8), "_window": table(1, 8, 8, 8)}, "which are not SAM 2's"),
        ({"": table(1, 96, 7, 7), "_window": table(1, 112, 8, 8)}, "which are not SAM 2's"),
        ({"": table(1, 96, 7, 7), "_window": table(1, 96, 0, 8)}, "which are not SAM 2's"),
        ({"": table(1, 96, 7, 7), "_window": table(1, 96, 300, 8)}, "which are not SAM 2's"),
        ({"": table(1, 96, 0, 7), "_window": table(1, 96, 8, 8)}, "which are not SAM 2's"),
        ({"": table(1, 9, 1, 1), "_window": table(1, 9, 1, 1)}, "which are not SAM 2's"),
    ],
)
def test_wrong_tables_of_positions_are_refused(tables: State, message: str) -> None:
    state = {f"image_encoder.trunk.pos_embed{name}": value for name, value in tables.items()}
    with pytest.raises(CheckpointError, match=message):
        read(state)


@pytest.mark.parametrize(
    "changes",
    [{"depths": (1, 1)}, {"heads": 5}, {"windows": (8, 4, 10_000, 7)}, {"width": 2**60}],
)
def test_a_config_of_no_such_encoder_is_refused(changes: dict) -> None:
    size = sam_config(state_of(96, (1, 2, 7, 2))).networks["sam2"]
    changed = {"sam2": replace(size, **changes)}
    config = replace(VIT_B, kind="pair", backbone=BACKBONE, task_sizes=None, networks=changed)
    with pytest.raises(CheckpointError, match=r"config\.json: sam2 has stages"):
        SamClipConfig.from_json(config.to_json())


def test_more_kinds_of_points_than_are_known_take_no_memory() -> None:
    state = {
        "vision_encoder.backbone.pos_embed": table(1, 96, 7, 7),
        "vision_encoder.backbone.pos_embed_window": table(1, 96, 8, 8),
        "prompt_encoder.point_embeddings.weight": table(500_000, 0),
    }
    found = read(state)
    assert sum(key.startswith("prompt_encoder.point_embeddings") for key in found) == 4
