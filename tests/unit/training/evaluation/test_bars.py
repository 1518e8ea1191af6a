from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluation.bars import draw_bars


def test_a_bar_for_each_figure_of_each_checkpoint(tmp_path: Path):
    """Each checkpoint has a bar in its colour, as long as its figure."""
    path = tmp_path / "bars.png"
    draw_bars({"one": {"camvid_miou": 0.25}, "two": {"camvid_miou": 0.75}}, path)
    pixels_HW3 = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colours = {"one": (31, 119, 180), "two": (255, 127, 14)}  # matplotlib's first two
    wide = [
        (abs(pixels_HW3 - colour).max(axis=2) < 3).sum(axis=1).max() for colour in colours.values()
    ]
    assert 2.8 < wide[1] / wide[0] < 3.2
