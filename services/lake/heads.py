"""Heads of one's own in a batch: each answers about every image, with its default parameters."""

import hashlib
import inspect
import json
from pathlib import Path
from threading import Lock
from typing import Any

from google.protobuf.struct_pb2 import Struct
from samclip import heads, wire
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.head import Ask, check
from samclip_core.answers.own import name_of, open_head
from samclip_core.errors import HeadError, InvalidRequest
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from services.heads.own.parameters import Parameters
from services.heads.own.result import Values, to_mask
from services.request.limits import Reply


def column(spec: str) -> str:
    """Return the column of a head's answers."""
    return f"head_{name_of(spec)}"


class BatchHead:
    """A head that is loaded in this process; several threads may ask it.

    digest: of the file of its class, or of its folder's files: an answer depends on it.
    """

    def __init__(self, spec: str, model: SamClip) -> None:
        """Raises HeadError, InvalidRequest, and the head's errors.

        Invalid is a head with a parameter that has no default, or whose outputs the model lacks.
        """
        self.column, self._model, self._lock = column(spec), model, Lock()
        self._head = open_head(spec)
        self.digest = _digest(spec, type(self._head))
        self._parameters = Parameters(self._head).read(Struct())
        self._head.load(model)
        check(self._head)
        Ask(self._head).check_outputs(model.config)
        self.size = self._head.size(model.config)

    def answer(self, features: ImageFeatures) -> str:
        """Return the answer as JSON, with masks as COCO's run lengths.

        It is {"error": …} if the head has none about this image. Raises HeadError for an answer
        with arrays or pictures, and other errors of the head.
        """
        try:
            with self._lock:
                found = self._model.ask(features, self._head, self._parameters)
        except InvalidRequest as error:
            return json.dumps({"error": str(error)}, ensure_ascii=False)
        made = Values(found, features.geometry, Reply())
        if made.tensors or made.pictures:
            raise HeadError(
                f"the answer for {self.column} has an array or a picture, which a table of a batch "
                "does not hold: return numbers, texts, lists and masks"
            )
        masks = wire.masks((to_mask(mask, pb.RLE) for mask in made.masks), pb.ImageInfo(), b"")
        values: Any = heads.with_parts(made.values, {"$mask": [mask.rle for mask in masks]})
        return json.dumps(values, ensure_ascii=False)


def _digest(spec: str, kind: type) -> str:
    place = Path(spec.rpartition(":")[0] or spec).expanduser()
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.is_file())
    else:
        files = [place if place.suffix == ".py" else Path(inspect.getfile(kind))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(checkpoint.sha256(path)))
    return digest.hexdigest()
