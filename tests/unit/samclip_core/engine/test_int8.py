"""A graph in int8 that differs too much from float32 on photographs is not served."""

import numpy as np
import pytest
from numpy.typing import NDArray

from samclip_core.engine.choice import noise
from samclip_core.engine.int8 import COSINE, LEAST, MASK_IOU, ON_NOISE, compared, refusal
from samclip_core.io import checkpoint

CONFIG = checkpoint.read_config(checkpoint.resolve("edge"))


class Encoder:
    """Features of random numbers; ``error`` is the share of others in them."""

    def __init__(self, error: float, on_noise: float | None = None) -> None:
        self.error, self.on_noise = error, error if on_noise is None else on_noise

    def run(self, names: None, inputs: dict[str, NDArray]) -> list[NDArray]:
        random = np.array_equal(inputs["pixels"], noise(inputs["pixels"].shape[-1])[0])
        error = self.on_noise if random else self.error
        own, other = (np.random.default_rng(seed).standard_normal(1000) for seed in (1, 2))
        return [np.sqrt(1 - error**2) * own + error * other]


class Decoder:
    """Masks of the signs of the features."""

    def run(self, names: None, inputs: dict[str, NDArray]) -> list[NDArray]:
        return [np.stack([inputs["sam"], -inputs["sam"]])[None], np.array([[0.9, 0.1]])]


def photographs() -> list[dict[str, NDArray]]:
    side, size = CONFIG.image_size, np.array([[300, 200]], np.int64)
    return [{"pixels": np.full((1, 3, side, side), i, np.uint8), "sizes": size} for i in range(40)]


def agreed(error: float, decoder: Decoder | None = None, on_noise: float = 0.0) -> dict[str, float]:
    return compared(Encoder(error, on_noise), Encoder(0), photographs(), decoder, CONFIG)


def test_photographs_and_not_noise_decide() -> None:
    good, bad = agreed(0.1, on_noise=0.9), agreed(0.9, on_noise=0.0)
    assert good[COSINE] == pytest.approx(0.995, abs=0.02)
    assert bad[ON_NOISE] == pytest.approx(1, abs=1e-4)
    assert not refusal(good)
    assert refusal(bad).startswith(f"cosine {bad[COSINE]}, expected {LEAST[COSINE]} or more")


def test_masks_have_a_floor_of_their_own() -> None:
    assert agreed(0.0, Decoder())[MASK_IOU] == 1
    assert MASK_IOU not in agreed(0.0)
    assert "mask_iou" in refusal({**agreed(0.0), MASK_IOU: 0.5})
    assert agreed(0.7, Decoder())[MASK_IOU] < LEAST[MASK_IOU]


@pytest.mark.parametrize(
    ("known", "refused"),
    [
        ({ON_NOISE: 0.9977}, False),  # an earlier export measured noise alone
        ({ON_NOISE: 0.3}, True),
        ({ON_NOISE: 0.9, COSINE: 0.99}, False),
        ({ON_NOISE: 0.99, COSINE: 0.5}, True),
        ({ON_NOISE: 0.99, COSINE: float("nan")}, True),
        ({}, True),
    ],
)
def test_what_the_manifest_says_decides_at_load(known: dict[str, float], refused: bool) -> None:
    assert bool(refusal(known)) is refused
