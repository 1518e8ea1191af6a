"""The linear layer is scikit-learn's, its figures are of cross-validation without leaks."""

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.linear_model import LogisticRegression

from samclip_core.answers.zero_shot import softmax, unit
from services.probe.fit import _folds, fit, layer
from services.probe.report import interval


def clusters(classes: int, each: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    class_N = np.repeat(np.arange(classes), each)
    centre_CD = random.normal(size=(classes, 16))
    return unit(centre_CD[class_N] + spread * random.normal(size=(len(class_N), 16))), class_N


@pytest.mark.parametrize("classes", [2, 5])
def test_a_written_layer_gives_the_probabilities_of_scikit_learn(classes: int) -> None:
    vectors_ND, class_N = clusters(classes, 10, 1.0)
    fitted = LogisticRegression(C=30).fit(vectors_ND, class_N)
    written = load(save(dict(zip("wb", layer(fitted), strict=True))))
    weight_CD, bias_C = written["w"], written["b"]
    ours_NC = softmax(vectors_ND @ weight_CD.T + bias_C, axis=-1)
    np.testing.assert_allclose(ours_NC, fitted.predict_proba(vectors_ND), atol=1e-5)


def test_probabilities_are_honest_and_the_threshold_keeps_what_is_right() -> None:
    vectors_ND, class_N = clusters(6, 60, 1.2)
    fitted = fit(vectors_ND, class_N, [*map(str, range(len(class_N)))])
    right_N = fitted.held_out_NC.argmax(axis=1) == class_N
    best_N = fitted.held_out_NC.max(axis=1)
    assert 0.5 < right_N.mean() < 0.95
    assert abs(best_N.mean() - right_N.mean()) < 0.06
    assert 0.95 <= (best_N[right_N] >= fitted.threshold).mean() < 0.97


def test_other_things_are_judged_by_layers_that_do_not_know_their_class() -> None:
    """Classes 0 and 1 are one cluster: without one of them, its pictures look like the other."""
    vectors_ND, class_N = clusters(6, 30, 0.4)
    vectors_ND[class_N == 1] = vectors_ND[class_N == 0]
    fitted = fit(vectors_ND, class_N, [*map(str, range(len(class_N)))])
    refused_N = fitted.left_out_N < 0.9
    assert refused_N[class_N > 1].mean() > 0.5 > refused_N[class_N < 2].mean()
    assert not len(fit(*clusters(2, 30, 0.4), [*map(str, range(60))]).left_out_N)


def test_random_labels_are_not_learnt_from_copies_of_a_picture() -> None:
    """Each picture is there twice: a fold that held only one of them would know its label."""
    random = np.random.default_rng(0)
    vectors_ND = unit(np.repeat(random.normal(size=(60, 256)), 2, axis=0))
    class_N = np.repeat(random.integers(0, 2, 60), 2)
    groups = [str(number // 2) for number in range(120)]
    fitted = fit(vectors_ND, class_N, groups)
    assert (fitted.held_out_NC.argmax(axis=1) == class_N).mean() < 0.7


def test_folds_spread_rare_classes_and_keep_groups() -> None:
    class_N = np.array([0] * 50 + [1, 1])
    fold_N = _folds(class_N, [*map(str, range(52))])
    assert fold_N[50] != fold_N[51]
    assert set(np.bincount(fold_N[:50])) == {10}
    of_boxes_N = _folds(np.array([0, 1, 0, 1, 0, 0]), ["p", "p", "q", "q", "r", "s"])
    assert of_boxes_N[0] == of_boxes_N[1] != of_boxes_N[2] == of_boxes_N[3]


def test_intervals_are_those_of_wilson() -> None:
    """Values of statsmodels' proportion_confint(…, method="wilson")."""
    assert interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
