"""The vectors of the words beside every text are used where they are those of this checkpoint."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samclip_core.answers import beside
from samclip_core.answers.evidence import BESIDE
from samclip_core.answers.zero_shot import class_texts
from samclip_core.config import EDGE
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a checkpoint whose export has kept the vectors."""
    vectors_ND = np.random.default_rng(0).normal(size=(len(BESIDE), EDGE.text_dim))
    entry = beside.write(tmp_path / checkpoint.BESIDE, EDGE, lambda texts: vectors_ND[: len(texts)])
    checkpoint.seal(tmp_path)
    checkpoint.seal_graphs(tmp_path, 20, {checkpoint.BESIDE: entry})
    return tmp_path


def test_each_text_has_its_vector_and_other_templates_have_none(directory: Path) -> None:
    kept = beside.read(directory, EDGE)
    assert len(kept) == len({*BESIDE})
    assert kept["a photo of a person."].dtype == np.float32
    assert not beside.read(directory, replace(EDGE, templates=("a {}",)))
    (directory / checkpoint.BESIDE).unlink()
    assert not beside.read(directory, EDGE)


def saved(array: np.ndarray, save: Callable[..., None] = np.save) -> bytes:
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


SHAPE = len(class_texts(BESIDE, EDGE.templates)), EDGE.text_dim


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no array", b"short"),
        saved(np.full(SHAPE, np.nan, np.float16)),
        saved(np.zeros(SHAPE, np.float16), np.savez),
        saved(np.full(SHAPE, None)),
    ],
    ids=["empty", "text", "short", "NaN", "zip", "objects"],
)
def test_a_damaged_file_is_refused(directory: Path, content: bytes) -> None:
    path = directory / checkpoint.BESIDE
    path.write_bytes(path.read_bytes()[:-8] if content == b"short" else content)
    with pytest.raises(CheckpointError, match="samclip export"):
        beside.read(directory, EDGE)
    entry = checkpoint.graphs(directory)[checkpoint.BESIDE]
    checkpoint.seal_graphs(directory, 20, {checkpoint.BESIDE: {"texts": entry["texts"]}})
    with pytest.raises(CheckpointError, match="damaged"):
        beside.read(directory, EDGE)
