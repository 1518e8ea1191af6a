"""An export without photographs keeps the int8 graphs, which it does not make."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samclip_core.commands import export
from samclip_core.config import EDGE
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint

KEPT = checkpoint.INT8_GRAPH


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint with an int8 graph, whose export makes no others."""
    text_encoder = SimpleNamespace(
        tokenizer_json="{}", embed=lambda texts: torch.zeros(len(texts), EDGE.text_dim)
    )
    monkeypatch.setattr(export, "load_text_encoder", lambda _: text_encoder)
    monkeypatch.setattr(export, "load_net", lambda _: None)
    monkeypatch.setattr(export, "_graphs", lambda *_: iter(()))
    (tmp_path / checkpoint.CONFIG).write_text(EDGE.to_json())
    (tmp_path / KEPT).write_bytes(b"an int8 graph")
    checkpoint.seal(tmp_path)
    checkpoint.seal_graphs(tmp_path, 20, {KEPT: {"agreement": 0.99}})
    return tmp_path


def test_the_int8_graph_stays_listed(directory: Path) -> None:
    before = checkpoint.graphs(directory)
    assert export.export(directory) == checkpoint.graphs_digest(directory)
    assert checkpoint.graphs(directory)[KEPT] == before[KEPT]


def test_an_int8_graph_that_was_replaced_is_not_listed_as_ours(directory: Path) -> None:
    before = checkpoint.identity(directory)
    (directory / KEPT).write_bytes(b"another graph")
    with pytest.raises(CheckpointError, match="int8 with --calibrate"):
        export.export(directory)
    assert checkpoint.identity(directory) == before
