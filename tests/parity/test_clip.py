"""Features and probabilities of a ``pair`` model against those of open_clip."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from samclip_core.config import TextConfig
from samclip_core.nn.pair import PairClipHead
from samclip_core.nn.text_encoder import OpenClipTextEncoder
from tests.clip_models import INPUT
from tests.official import clip

LABELS = ["an astronaut", "a rocket", "a cat", "coffee"]
TEMPLATE = "a photo of {}."


def official_text(model, name: str, texts: list[str]) -> torch.Tensor:
    return model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)


def official_image(model, image: np.ndarray) -> torch.Tensor:
    transform = open_clip.image_transform(INPUT, is_train=False)
    return model.encode_image(transform(Image.fromarray(image))[None], normalize=True)


def test_text_features(small):
    texts = [*LABELS, "Ünïcödé & punctuation!?", "long " * 100, "x"]
    expected = official_text(small.clip, small.clip_name, texts)
    np.testing.assert_allclose(small.model.embed_text(texts), expected, atol=1e-4, rtol=0)


def test_image_features_with_open_clips_own_preprocessing(small_without_resizing, photograph):
    image = photograph(INPUT, INPUT)
    expected = official_image(small_without_resizing.clip, image)[0]
    ours = small_without_resizing.model.embed_image(image)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_image_features_stay_close_where_the_frame_is_resized(small, photograph):
    """An image resized twice has features close to those of one resized once, not equal."""
    image = photograph(512, 512)
    assert small.model.embed_image(image) @ official_image(small.clip, image)[0].numpy() > 0.999


def test_class_probabilities(small_without_resizing, photograph):
    model, _, official, name = small_without_resizing
    image = photograph(INPUT, INPUT)
    text_TD = official_text(official, name, [TEMPLATE.format(label) for label in LABELS])
    logits_T = official.logit_scale.exp() * official_image(official, image)[0] @ text_TD.T
    expected = dict(zip(LABELS, logits_T.softmax(dim=-1).tolist(), strict=True))
    scores = model.classify(image, LABELS, templates=[TEMPLATE])
    assert len(scores) == len(LABELS)
    for score in scores:
        assert score.score == pytest.approx(expected[score.label], abs=1e-4)
    assert sum(score.score for score in scores) == pytest.approx(1)


def test_vit_b_32_features():
    """The real architecture agrees on image and text when both sides get the same tensors."""
    official, text = clip("ViT-B-32"), TextConfig(tower="open_clip", model="ViT-B-32")
    head, text_encoder = (
        PairClipHead(text).eval(),
        OpenClipTextEncoder(text),
    )
    state = official.state_dict()
    head.load_state_dict({k: v for k, v in state.items() if k.startswith("visual.")})
    text_encoder.eval().load_state_dict(
        {f"model.{k}": v for k, v in state.items() if not k.startswith("visual.")}
    )
    pixels = 255 * torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(6))
    sizes = torch.tensor([[256, 256], [256, 120]])
    _, pooled = head(pixels, sizes)
    expected = F.normalize(official.encode_image(head.clip_input(pixels, sizes)), dim=-1)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        text_encoder.embed(LABELS), official_text(official, "ViT-B-32", LABELS), atol=1e-4, rtol=0
    )
