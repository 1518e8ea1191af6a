"""A first training: the ``debug`` recipe without any data set."""

from pathlib import Path

import pytest
import torch

from samclip_core.model import SamClip
from training import train
from training.recipes import Run


def test_the_debug_recipe_needs_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two stages read all kinds of its photographs: outlines, label maps and plain ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    threads = torch.get_num_threads()
    short = ("dtype=float32", "joint=null", "adaptation=null")  # CPUs differ in bfloat16's speed
    changes = [word for change in short for word in ("--set", change)]
    try:
        assert train.main(["--recipe", "debug", "--threads", "1", *changes]) == 0
    finally:
        torch.set_num_threads(threads)
    model = SamClip.load(tmp_path / "runs/debug/checkpoint")
    (best, *_) = model.classify(
        (tmp_path / "runs/debug/photographs/drawn/chelsea.jpg").read_bytes(), ["a cat", "a rocket"]
    )
    assert best.label == "a cat"


def test_its_own_photographs_are_a_start_that_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs: list[Run] = []

    def fit(run: Run, *_: object) -> None:
        runs.append(run)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    monkeypatch.setattr(train, "_fit", fit)
    for changes in ((), ("--set", "named_sets=[]", "--set", 'photo_sets=[["drawn", 2]]')):
        with pytest.raises(KeyboardInterrupt):
            train.main(["--recipe", "debug", *changes])
    assert [run.recipe.named_sets for run in runs] == [("drawn",), ()]
    assert [run.recipe.photo_sets for run in runs] == [(("drawn", 1.0),), (("drawn", 2),)]
