"""A peer's work on a batch of up to eight requests, with the model that our service serves.

As documented, it runs in PyTorch's eager mode in float32; with our library inside, as in our
service. Requests are self-contained, as a peer keeps nothing: classifications and clicks bring the
image, searches the text. Images of a batch are encoded together, and so are texts; clicks go
through the mask decoder one by one.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.in_process import LABELS
from samclip_core import Prompt, SamClip

MAX_BATCH = 8
WAIT_S = 0.002  # for a batch to fill
PATH = "/ask"
PORT = int(os.environ.get("BENCH_PEER_PORT", "0"))
ITEMS = 32  # of the collection that is searched


@dataclass(frozen=True)
class Asked:
    kind: str
    point: tuple[float, float]
    text: str
    image: Any  # from ``SamClip.prepare``; None for a search


class Work:
    """A peer's work: ``read`` parses one request, ``run`` answers a batch."""

    def __init__(self, model: SamClip) -> None:
        self._model = model
        items = np.random.default_rng(0).normal(size=(ITEMS, model.config.text_dim))
        self._items_ND = items / np.linalg.norm(items, axis=1, keepdims=True)
        blank = json.dumps({"kind": "click", "point": (30, 30), "text": ""}).encode() + b"\n"
        grey = io.BytesIO()
        Image.new("RGB", (384, 384), "grey").save(grey, "JPEG")
        for size in (1, 2, 4, MAX_BATCH):
            self.run([self.read(blank + grey.getvalue())] * size)

    def read(self, content: bytes) -> Asked:
        head, _, file = content.partition(b"\n")
        return Asked(**json.loads(head), image=self._model.prepare(file) if file else None)

    def run(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        images = [asked.image for asked in batch if asked.image is not None]
        texts = [asked.text for asked in batch if asked.image is None]
        encoded = iter(self._model.encode_batch(images) if images else ())
        embedded = iter(self._model.embed_text(texts) if texts else ())
        answers: list[dict[str, Any]] = []
        for asked in batch:
            if asked.kind == "search":
                similarity_N = self._items_ND @ next(embedded)
                best = np.argsort(-similarity_N)[:10]
                answers.append({"hits": best.tolist(), "scores": similarity_N[best].tolist()})
            elif asked.kind == "click":
                answers.append({"mask": self._mask(next(encoded), asked.point)})
            else:
                scores = self._model.classify(next(encoded), LABELS)
                answers.append({"scores": {score.label: score.score for score in scores}})
        return answers

    def _mask(self, features: Any, point: tuple[float, float]) -> str:
        """Return COCO's compressed RLE, at the size of the image."""
        from pycocotools import mask as coco_mask

        (answer,) = self._model.segment(features, [Prompt(points=(point,))], False)
        mask_HW = np.asfortranarray(answer.masks_MHW[0].astype(np.uint8))
        return coco_mask.encode(mask_HW)["counts"].decode()


def chosen(environment: Mapping[str, str] = os.environ) -> Work:
    ours = environment["BENCH_PEER_WORK"] == "Library"
    options = {} if ours else {"engine": "torch"}
    dtype = environment["BENCH_PEER_DTYPE"] if ours else "float32"
    return Work(SamClip.load(environment["BENCH_PEER_CHECKPOINT"], dtype=dtype, **options))
