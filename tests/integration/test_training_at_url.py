"""A run whose folder is a URL leaves what one on a disk leaves."""

from pathlib import Path

import pytest
import torch

from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.model import SamClip
from training import merges, train

RECIPE = """
from dataclasses import replace
from training.recipes import debug

def small():
    short = replace(debug().joint, steps=1)
    return replace(
        debug(), dtype="float32", sam_teacher=short, head_probing=short, joint=None,
        adaptation=None, photo_sides=(96,), dense_weight=0.0, name_weight=0.0,
    )
"""


def test_a_run_at_a_url_leaves_its_states_and_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text(RECIPE)
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
    assert len(states.text("head-probing.losses.tsv").splitlines()) == 2
    assert states.exists("tensorboard/head-probing")
    run.system.get(f"{run.path}/checkpoint/", f"{tmp_path}/copy", recursive=True)
    checkpoint.verify(tmp_path / "copy")
    SamClip.load(tmp_path / "copy")
