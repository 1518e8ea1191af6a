import numpy as np
import pytest

from training.evaluation.overlap import interval, semantic_figures


def photographs(count: int, seed: int = 0) -> list[np.ndarray]:
    """Return pixel counts of four classes, the third only predicted, the fourth never seen."""
    random = np.random.default_rng(seed)
    counts = []
    for right_2 in random.integers(20, 80, (count, 2)):
        right = [*right_2, 0, 0]
        counts.append(np.array([right, [100, 100, 0, 0], [*right_2, *(200 - right_2.sum(), 0)]]))
    return counts


def test_both_rules_the_numbers_and_the_interval():
    counts = photographs(40)
    figures = semantic_figures("set", counts)
    right_2 = np.sum(counts, axis=0)[0, :2]
    both = right_2 / 4000  # the union is the truth: what is wrong is predicted as the third class
    assert figures["set_miou"] == pytest.approx(both.mean())
    assert figures["set_miou_union"] == pytest.approx(both.sum() / 3)
    assert figures["set_miou_low"] < figures["set_miou"] < figures["set_miou_high"]
    numbers = [figures[f"set_{name}"] for name in ("classes", "classes_union", "photographs")]
    assert numbers == [2, 3, 40]
    assert all(isinstance(number, int) for number in numbers)


def test_the_interval_is_that_of_the_mean_over_photographs():
    """With one class the IoU is a mean, whose standard error is known."""
    counts = np.stack(photographs(200))[:, :, :1]
    counts[:, 2] = counts[:, 0]  # nothing else is predicted as this class
    low, high = interval(counts)
    share_N = counts[:, 0, 0] / 100
    error = share_N.std(ddof=1) / np.sqrt(len(share_N))
    assert low == pytest.approx(share_N.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(share_N.mean() + 1.96 * error, abs=0.3 * error)
    assert interval(counts) == (low, high)


def test_photographs_without_labelled_pixels_do_not_count():
    counts = photographs(2)
    empty = [np.zeros_like(counts[0])] * 2
    low, high = interval(np.stack(counts + empty))
    assert np.isfinite([low, high]).all()
    with pytest.raises(ValueError, match="set: no labelled pixels in 2 photographs"):
        semantic_figures("set", empty)
    with pytest.raises(ValueError, match="in 0 photographs"):
        semantic_figures("set", [])
