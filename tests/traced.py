"""Exported graphs on disk: tracing takes most of the time of the tests that export."""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import onnxscript
import torch
from onnx import ModelProto
from onnx_ir import Model, from_proto, to_proto

from tests.checkout import ROOT

FOLDER = ROOT / "out/traced"


class _Content(pickle.Pickler):
    """Pickles tensors and sets by their contents: their own pickles differ between processes."""

    def persistent_id(self, found: Any) -> Any:
        if isinstance(found, torch.Tensor):
            values = found.detach().numpy().tobytes()
            return str(found.dtype), tuple(found.shape), hashlib.sha256(values).digest()
        return sorted(map(repr, found)) if isinstance(found, set | frozenset) else None


@cache
def _sources() -> bytes:
    """Return a digest of the code that is traced and of what traces it."""
    digest = hashlib.sha256(f"{torch.__version__} {onnxscript.__version__}".encode())
    for path in sorted((ROOT / "samclip_core").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def kept(trace: Callable[..., Model], *given: Any) -> Model:
    """Return ``trace(*given)``; from disk, if a module with the same attributes has been traced."""
    whole = io.BytesIO()
    try:
        _Content(whole).dump((*given[:-1], str(given[-1])))
    except (pickle.PicklingError, AttributeError, TypeError):
        return trace(*given)
    path = FOLDER / hashlib.sha256(_sources() + whole.getvalue()).hexdigest()
    with suppress(FileNotFoundError):
        return from_proto(ModelProto.FromString(path.read_bytes()))
    model = trace(*given)
    FOLDER.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(to_proto(model).SerializeToString())
    new.replace(path)
    return model
