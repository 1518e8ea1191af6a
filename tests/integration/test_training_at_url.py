"""A run whose folder is a URL measures, ends early, and leaves what one on a disk leaves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.model import SamClip
from tests.coco_set import write_coco
from tests.photographs import draw
from training import merges, train

RECIPE = """
from dataclasses import replace
from training.recipes import debug
from training.schedule import Measures

def small():
    suites = (("coco-boxes", "coco2017"), ("imagenet", "imagenet"))
    measures = Measures(suites=suites, every=1, limit=1, best="coco-boxes/ap", patience=1)
    short = replace(debug().joint, steps=1)
    probing = replace(short, steps=50, rate=0.0, measures=measures)
    return replace(
        debug(), dtype="float32", sam_teacher=short, head_probing=probing, joint=None,
        adaptation=None, photo_sides=(96,), dense_weight=0.0, name_weight=0.0,
    )
"""


def write_sets(photographs: Path) -> None:
    write_coco(photographs / "coco2017", [draw(seed, 48, 64) for seed in range(2)])
    for name in ("n01440764", "n01443537"):
        folder = photographs / "imagenet/val" / name
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes((photographs / "coco2017/val2017/0.jpg").read_bytes())


def test_a_run_at_a_url_measures_and_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """At a rate of 0 the second measure gains nothing, so that the stage ends after two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text(RECIPE)
    write_sets(tmp_path / "runs/debug/photographs")
    # Embedding a thousand names takes seconds, and the result is of no interest here.
    monkeypatch.setattr(merges, "class_embeddings", lambda _, names: torch.eye(len(names), 384))
    threads = torch.get_num_threads()
    url = f"memory://{tmp_path}/run"
    try:
        arguments = ["--recipe", "own.py:small", "--out", url, "--threads", "1"]
        assert train.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)

    run = Folder(url)
    assert f"{run.url}/checkpoint" in capsys.readouterr().out
    states = run / "states"
    names, *rows = states.text("head-probing.measures.tsv").splitlines()
    assert names.split("\t")[:2] == ["step", "coco-boxes/ap"]
    assert names.endswith("imagenet/top1\timagenet/top5\timagenet/paper_top1\timagenet/paper_top5")
    figures = np.loadtxt(rows)
    assert figures[:, 0].tolist() == [0, 1, 2]
    assert (figures[1:, 1:] == figures[0, 1:]).all()
    assert states.exists("tensorboard/head-probing")
    run.system.get(f"{run.path}/checkpoint/", f"{tmp_path}/copy", recursive=True)
    checkpoint.verify(tmp_path / "copy")
    SamClip.load(tmp_path / "copy")
