"""The sentence encoder embeds texts in batches as one by one."""

from pathlib import Path

import pytest
import torch

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError, InvalidLabels
from samclip_core.families.edge.network import SentenceTextEncoder
from samclip_core.nn.text_encoder import (
    BATCH,
    build_text_encoder,
    load_text_encoder,
)


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> SentenceTextEncoder:
    encoder = load_text_encoder(tiny_checkpoint)
    assert isinstance(encoder, SentenceTextEncoder)
    return encoder


def _texts(count: int) -> list[str]:
    return [f"the dog {index} " + "of the grass " * (index % 9) for index in range(count)]


def test_many_texts_equal_single_ones(encoder: SentenceTextEncoder) -> None:
    texts = _texts(2 * BATCH + 3)
    alone_TD = torch.cat([encoder.embed([text]) for text in texts])
    assert (encoder.embed(texts) - alone_TD).abs().max() <= 1e-5


def test_the_centre_is_taken_off(encoder: SentenceTextEncoder, tiny_checkpoint: Path) -> None:
    centred, texts = load_text_encoder(tiny_checkpoint), _texts(8)
    before_TD = encoder.embed(texts)
    centred.center_D.copy_(before_TD.mean(dim=0))
    expected_TD = torch.nn.functional.normalize(before_TD - before_TD.mean(dim=0), dim=1)
    torch.testing.assert_close(centred.embed(texts), expected_TD)


@pytest.mark.parametrize("texts", [[], [""], ["dog", "  "]])
def test_nothing_to_embed(encoder: SentenceTextEncoder, texts: list[str]) -> None:
    with pytest.raises(InvalidLabels):
        encoder.embed(texts)


@pytest.mark.parametrize("model", ["no-such-model", "ViT-B-16-SigLIP"])
def test_an_open_clip_tower_that_cannot_work_offline_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match=model):
        build_text_encoder(TextConfig(tower="open_clip", model=model))
