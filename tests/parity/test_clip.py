"""Features and probabilities of a ``pair`` model against those of open_clip."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.clip_models import INPUT

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
