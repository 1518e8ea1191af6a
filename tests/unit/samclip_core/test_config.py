"""config.json is read strictly."""

import json
from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers.concepts import space_of
from samclip_core.calibration import UNCALIBRATED
from samclip_core.config import EDGE, VIT_B, SamClipConfig
from samclip_core.errors import CheckpointError, InvalidRequest
from tests.tiny import TINY, WITHOUT_MASKS


@pytest.mark.parametrize(
    "config",
    [
        *(EDGE, VIT_B, replace(EDGE, clip_head=None), TINY["edge"], TINY["radio"]),
        replace(TINY["radio"], **WITHOUT_MASKS),
        replace(TINY["pair"], kind="radio", networks=WITHOUT_MASKS["networks"]),  # two encoders
    ],
)
def test_json_round_trip(config: SamClipConfig) -> None:
    assert SamClipConfig.from_json(config.to_json()) == config


NO_NUMBERS = space_of(np.full(EDGE.text_dim, np.nan), 1.0).mean
FITTED = json.loads(TINY["edge"].to_json())["calibration"]
PRESENCE = FITTED["presence"]
TEXT = json.loads(EDGE.to_json())["text"]
TOWER = {"width": 8, "depth": 1, "heads": 1, "hidden": 8, "gated": False, "patch": 8, "side": 16}
NO_CLIPS = (
    *({}, {"model_cfg": None}, {"model_cfg": {"text_cfg": {}}}),
    {"model_cfg": {"text_cfg": [], "vision_cfg": {}}},
    {"model_cfg": {"text_cfg": {"tokenizer_kwargs": []}, "vision_cfg": {}}},
    {"model_cfg": {"text_cfg": {}, "vision_cfg": {}}, "preprocess_cfg": None},
)
NESTED = {"model_cfg": {"text_cfg": {}, "vision_cfg": json.loads("[" * 600 + "]" * 600)}}
SIZES = ("classify", "semantic", "retrieval")


def _changed(**changes: object) -> str:
    return json.dumps(json.loads(EDGE.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is not an object"),
        (_changed(colour="red"), r"unknown keys \['colour'\]"),
        (_changed(decoder={"depth": 2, "heads": 8}), r"decoder: .*missing keys \['mlp'\]"),
        (_changed(kind="huge"), "'huge' is not one of edge, vit-b, pair, radio"),
        (_changed(image_size="384"), "image_size: '384'"),
        (_changed(image_size=True), "image_size: True"),
        (_changed(templates="a {}"), "templates"),
        (_changed(templates=["a photo"]), "each needs exactly one {}"),
        (_changed(templates=[]), "each needs exactly one {}"),
        (_changed(image_size=385), "not a multiple of 32"),
        (_changed(stride=16), "has the stride 8, found 16"),
        (_changed(backbone="vit_x", stride=16), "vit_x is none of the encoders .*vit_b, vit_l"),
        (
            _changed(backbone="vit_b", stride=16),
            "a CLIP head of kind edge reads tf_efficientnet_lite0, not vit_b",
        ),
        (_changed(kind="vit-b"), "kind vit-b reads .*vit_b, .*, not tf_efficientnet_lite0"),
        (_changed(networks={}), r"unknown keys \['networks'\]"),
        (_changed(sam2={}), r"config.json: sam2: .*missing keys \['depths'"),
        (
            _changed(backbone="sam2.1", image_size=1024, stride=16),
            "sam2 is null, but SAM 2.1 needs",
        ),
        (_changed(kind="radio"), "radio is null, but C-RADIO needs its sizes"),
        (_changed(text=TEXT | {"tower": "tips2"}), "text.tower 'tips2' is not one of"),
        (
            _changed(text=TEXT | {"image": TOWER}),
            "image tower, which is of no text.tower 'sentence'",
        ),
        *((_changed(text=TEXT | {"open_clip": one}), "open_clip_config.json") for one in NO_CLIPS),
        (_changed(preprocess="0"), "preprocessing version '0'"),
        (_changed(task_sizes={"classify": 96}), r"task_sizes: .*missing keys"),
        (_changed(calibration={"attention": 60.0}), r"calibration: .*missing keys \['min_label"),
        (_changed(calibration=FITTED | {"colour": 1}), r"calibration: unknown keys \['colour'\]"),
        (
            _changed(calibration=FITTED | {"attention": "60"}),
            "attention: '60' is not of type float",
        ),
        (_changed(calibration=FITTED | {"attention": float("nan")}), "attention: nan is not"),
        (_changed(calibration=FITTED | {"attention": 10**400}), "attention: 10+ is not"),
        (_changed(calibration=FITTED | {"concepts": {"mean": NO_NUMBERS, "bias": 1}}), "float16"),
        (
            _changed(calibration=FITTED | {"concepts": {"mean": "?" * len(NO_NUMBERS), "bias": 1}}),
            "float16",
        ),
        (_changed(calibration=FITTED | {"min_label_score": 30}), "scores .* expected 0 to 1"),
        (_changed(calibration=FITTED | {"presence": {}}), "presence: .*missing keys"),
        (_changed(calibration=FITTED | {"presence": PRESENCE | {"min_score": 2}}), r"0\.3, 2\.0"),
        *((_changed(points_per_side=n), "points_per_side .* 1 to 64") for n in (20_000, 0, -3)),
        (_changed(templates=["a {}"] * 257), "up to 256 templates"),
        (_changed(templates=["a {}" + "x" * 1000]), "of up to 1000 characters"),
        (_changed(image_size=2**40), "a frame of 1099511627776 pixels, expected up to 4096"),
        (_changed(task_sizes=dict.fromkeys(SIZES, 2**13)), "a frame of 8192 pixels"),
        (_changed(text=TEXT | {"image": TOWER | {"side": 2**13}}), "a frame of 8192 pixels"),
        *((_changed(logit_scale=n), "logit_scale .* up to 1000") for n in (0, -20, 1e4)),
        (_changed(min_stability=1.5), "min_stability 1.5, expected 0 to 1"),
        (_changed(min_predicted_iou=-1), "min_predicted_iou -1, expected 0 to 1"),
        (_changed(embed_dim=-1), "embed_dim -1: expected 1 or more"),
        (_changed(text_dim=0), "text_dim 0 and"),
        *((_changed(name=name), "printable") for name in ("x" * 129, "a\x1b[31m", "a\nb")),
        (_changed(text=TEXT | {"open_clip": NESTED}), "has more than 32 levels"),
        (_changed(task_sizes=dict.fromkeys(SIZES, 100)), "task_sizes: .*multiple of 32"),
    ],
)
def test_strict(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SamClipConfig.from_json(text)


@pytest.mark.parametrize(
    "config",
    [
        replace(EDGE, decoder=None),
        replace(TINY["radio"], decoder=None),
        replace(TINY["radio"], networks=WITHOUT_MASKS["networks"]),
    ],
)
def test_sams_part_is_in_the_encoder_and_the_decoder_or_in_neither(config: SamClipConfig) -> None:
    with pytest.raises(CheckpointError, match="decoder and the encoder's part for masks belong"):
        SamClipConfig.from_json(config.to_json())


def test_a_file_without_task_sizes_uses_one_side() -> None:
    values = json.loads(EDGE.to_json())
    del values["task_sizes"]
    config = SamClipConfig.from_json(json.dumps(values))
    assert config.sizes == (384,)
    assert [config.size_of(task) for task in SIZES] == [384, 384, 384]


def test_a_file_without_calibration_is_uncalibrated() -> None:
    values = json.loads(EDGE.to_json())
    del values["calibration"]
    config = SamClipConfig.from_json(json.dumps(values))
    assert config.uncalibrated
    assert config.fitted == UNCALIBRATED
    fitted = SamClipConfig.from_json(_changed(calibration=FITTED))
    assert not fitted.uncalibrated
    assert fitted.fitted == fitted.calibration
    without_presence = _changed(calibration=FITTED | {"presence": None})
    assert SamClipConfig.from_json(without_presence).uncalibrated


@pytest.mark.parametrize(
    ("config", "size"), [(EDGE, 0), (EDGE, -32), (EDGE, 400), (VIT_B, 8), (VIT_B, 337)]
)
def test_a_side_that_the_encoder_cannot_read(config: SamClipConfig, size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"frame of {size} pixels: choose a positive multiple"):
        config.check_size(size)
