import json
from dataclasses import replace

import pytest

from samclip_core.config import EDGE, VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError


@pytest.mark.parametrize("config", [EDGE, VIT_B, replace(EDGE, clip_head=None)])
def test_json_round_trip(config: SamClipConfig) -> None:
    assert SamClipConfig.from_json(config.to_json()) == config


def _changed(**changes: object) -> str:
    return json.dumps(json.loads(EDGE.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        (_changed(colour="red"), r"unknown keys \['colour'\]"),
        (_changed(decoder={"depth": 2, "heads": 8}), r"decoder: .*missing keys \['mlp'\]"),
        (_changed(kind="huge"), "'huge' is not one of edge, vit-b, pair"),
        (_changed(image_size="384"), "image_size: '384'"),
        (_changed(image_size=True), "image_size: True"),
        (_changed(templates="a {}"), "templates"),
        (_changed(templates=["a photo"]), "templates need exactly one {}"),
        (_changed(templates=[]), "templates need exactly one {}"),
        (_changed(image_size=385), "not a multiple of stride"),
        (_changed(preprocess="0"), "preprocessing version '0'"),
    ],
)
def test_strict(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SamClipConfig.from_json(text)


def test_a_missing_key_is_named() -> None:
    values = json.loads(EDGE.to_json())
    del values["logit_scale"]
    with pytest.raises(CheckpointError, match=r"missing keys \['logit_scale'\]"):
        SamClipConfig.from_json(json.dumps(values))


def test_grid() -> None:
    assert (EDGE.grid, VIT_B.grid) == (48, 64)
