"""Sizes that no network has are refused, before they take memory."""

from dataclasses import replace

import pytest

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.io.shapes import shapes_of
from samclip_core.nn.network import build
from samclip_core.nn.tokenizer import of_open_clip
from tests.clip_models import SIGLIP
from tests.tiny import TINY


@pytest.mark.parametrize("width", [-1, 10**30])
def test_a_width(width: int) -> None:
    config = replace(TINY["edge"], text_dim=width)
    with pytest.raises(CheckpointError, match="no network has the sizes"):
        shapes_of(lambda: build(config))


@pytest.mark.parametrize("missing", ["embed_dim", "vision_cfg"])
def test_an_image_tower_of_open_clip(missing: str) -> None:
    model = {key: value for key, value in SIGLIP["model_cfg"].items() if key != missing}
    text = TextConfig(tower="open_clip", open_clip=SIGLIP | {"model_cfg": model})
    with pytest.raises(CheckpointError, match="no network has the sizes"):
        shapes_of(lambda: build(replace(TINY["pair"], text=text)))


@pytest.mark.parametrize("clean", [None, [], "lower"])
def test_a_tokenizer_of_open_clip(clean: object) -> None:
    model = SIGLIP["model_cfg"]
    words = model["text_cfg"] | {"tokenizer_kwargs": {"clean": clean}}
    described = {"model_cfg": model | {"text_cfg": words}}
    with pytest.raises(CheckpointError, match="whitespace or canonicalize"):
        of_open_clip(TextConfig(tower="open_clip", open_clip=described), "{}")
