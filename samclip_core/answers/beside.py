"""The vectors of the words beside every text, which an export keeps in the checkpoint.

A slow text tower takes minutes for these words, with every template, and no question in words can
be answered before.

T texts, D width.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samclip_core import guarded
from samclip_core.answers.evidence import BESIDE
from samclip_core.answers.zero_shot import class_texts
from samclip_core.config import SamClipConfig
from samclip_core.geometry import FloatArray
from samclip_core.io import checkpoint, manifest


def write(
    path: Path, config: SamClipConfig, embed: Callable[[Sequence[str]], FloatArray]
) -> dict[str, str]:
    """Embed the words with the checkpoint's templates; return the manifest's entry of the file."""
    texts = class_texts(BESIDE, config.templates)
    with path.open("wb") as file:
        np.save(file, np.asarray(embed(texts), np.float16), allow_pickle=False)
    return {"texts": _digest(texts)}


def read(directory: Path, config: SamClipConfig) -> dict[str, NDArray[np.float32]]:
    """Return the vector D of each text; empty if none, or those of other words, are kept.

    Raises CheckpointError if the file is damaged.
    """
    texts = class_texts(BESIDE, config.templates)
    kept = checkpoint.graphs(directory).get(checkpoint.BESIDE, {})
    here = (directory / checkpoint.BESIDE).is_file()  # a copy may be without what was exported
    if kept.get("texts") != _digest(texts) or not here:
        return {}
    path = checkpoint.verified_graph(directory, checkpoint.BESIDE)
    try:
        text_TD = guarded.read_array(path, (len(texts), config.text_dim), np.float16)
    except (ValueError, OSError) as error:
        raise manifest.damaged(directory, checkpoint.BESIDE) from error
    if not np.isfinite(text_TD).all():
        raise manifest.damaged(directory, checkpoint.BESIDE)
    text_TD = text_TD.astype(np.float32)
    return dict(zip(texts, text_TD, strict=True))


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
