"""Labels and templates become class vectors, and a picture's scores."""

from collections.abc import Sequence

import numpy as np
import pytest

from samclip_core.answers.zero_shot import check_labels, class_embeddings, class_texts, classify
from samclip_core.errors import InvalidLabels

VECTORS = {
    "a cat": (1.0, 0.0, 0.0),
    "the cat": (0.0, 1.0, 0.0),
    "a dog": (0.0, 0.0, 1.0),
    "the dog": (0.0, 0.0, 1.0),
}


def embed_text(texts: Sequence[str]) -> np.ndarray:
    return np.array([VECTORS[text] for text in texts])


def test_embeddings_are_the_mean_over_templates_made_length_one() -> None:
    text_LD = class_embeddings(embed_text, ["cat", "dog"], ["a {}", "the {}"])
    assert text_LD.dtype == np.float32
    np.testing.assert_allclose(text_LD, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], atol=1e-6)


def test_labels_of_data_sets_are_embedded_in_plain_words() -> None:
    texts = class_texts(["wall-other-merged", "t-shirt"], ["a {}", "the {}"])
    assert texts == ["a wall", "the wall", "a t-shirt", "the t-shirt"]


def test_labels_stand_as_they_are_without_templates() -> None:
    np.testing.assert_allclose(class_embeddings(embed_text, ["a cat"], []), [[1, 0, 0]])


def test_scores_are_the_softmax_of_scaled_cosines() -> None:
    pooled_D, text_LD = np.array([0.6, 0.8, 0.0]), np.eye(3)
    scores = classify(pooled_D, text_LD, ["x", "y", "z"], logit_scale=10.0)
    expected = np.exp([8.0, 6.0, 0.0]) / np.exp([8.0, 6.0, 0.0]).sum()
    assert [score.label for score in scores] == ["y", "x", "z"]
    np.testing.assert_allclose([score.score for score in scores], expected, rtol=1e-5)
    np.testing.assert_allclose([score.similarity for score in scores], [0.8, 0.6, 0.0], atol=1e-6)


@pytest.mark.parametrize(("top_k", "kept"), [(None, 3), (0, 3), (2, 2), (9, 3)])
def test_top_k(top_k: int | None, kept: int) -> None:
    scores = classify(np.array([0, 0, 1.0]), np.eye(3), ["x", "y", "z"], 100.0, top_k)
    assert len(scores) == kept
    assert scores[0].label == "z"
    assert scores[0].score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "no labels"), (["cat", " "], "empty"), (["cat"] * 4, "4 labels, the limit is 3")],
)
def test_bad_labels(labels: list[str], message: str) -> None:
    with pytest.raises(InvalidLabels, match=message):
        check_labels(labels, limit=3)


def test_a_template_needs_a_place_for_the_label() -> None:
    with pytest.raises(InvalidLabels, match="put it where the label goes"):
        class_embeddings(embed_text, ["cat"], ["a photo"])
