"""A peer's work on a batch of up to eight requests, in two versions.

Requests are self-contained, as a peer keeps nothing: classifications and clicks bring the image,
searches the text. Images of a batch are encoded together, and so are texts; clicks go through a
mask decoder one by one.
"""

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.in_process import LABELS, load

MAX_BATCH = 8
WAIT_S = 0.002  # for a batch to fill
PATH = "/ask"
PORT = int(os.environ.get("BENCH_PEER_PORT", "0"))
ITEMS, WIDTH = 32, 384  # of the collection that is searched


@dataclass(frozen=True)
class Asked:
    kind: str
    point: tuple[float, float]
    text: str
    image: Any  # from ``prepare``; None for a search


class Work(ABC):
    """A peer's work: ``read`` parses one request, ``run`` answers a batch."""

    def __init__(self) -> None:
        items = np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32)
        self._items_ND = items / np.linalg.norm(items, axis=1, keepdims=True)
        blank = json.dumps({"kind": "click", "point": (30, 30), "text": ""}).encode() + b"\n"
        for size in (1, 2, 4, MAX_BATCH):
            self.run([self.read(blank + _grey())] * size)

    def read(self, content: bytes) -> Asked:
        head, _, file = content.partition(b"\n")
        return Asked(**json.loads(head), image=self.prepare(file) if file else None)

    def run(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        images = [asked.image for asked in batch if asked.image is not None]
        texts = [asked.text for asked in batch if asked.image is None]
        encoded = iter(self.encode(images) if images else ())
        embedded = iter(self.embed(texts) if texts else ())
        answers: list[dict[str, Any]] = []
        for asked in batch:
            if asked.kind == "search":
                similarity_N = self._items_ND @ next(embedded)
                best = np.argsort(-similarity_N)[:10]
                answers.append({"hits": best.tolist(), "scores": similarity_N[best].tolist()})
            elif asked.kind == "click":
                answers.append({"mask": self.mask(next(encoded), asked)})
            else:
                answers.append({"scores": self.scores(next(encoded))})
        return answers

    @abstractmethod
    def prepare(self, file: bytes) -> Any: ...

    @abstractmethod
    def encode(self, images: Sequence[Any]) -> list[Any]: ...

    @abstractmethod
    def scores(self, encoded: Any) -> dict[str, float]: ...

    @abstractmethod
    def mask(self, encoded: Any, asked: Asked) -> str:
        """Return COCO's compressed RLE, at the size of the image."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one row per text."""


class Documented(Work):
    """PyTorch in eager float32 with random weights and no cache.

    Images: timm's EfficientNet-Lite0 at 384 pixels with a linear classifier. Clicks: its map at
    stride 8 through a 1×1 convolution, then SAM's prompt encoder and mask decoder at the sizes of
    ``edge``. Texts: the text encoder of ``edge``, a BERT with six layers.
    """

    def __init__(self) -> None:
        import timm
        import torch
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        from samclip_core.nn.text_encoder import load_text_encoder

        self._torch, width, side, grid = torch, 128, 384, 48
        self._text = load_text_encoder(Path(os.environ["BENCH_PEER_CHECKPOINT"])).eval()
        self._trunk = timm.create_model("tf_efficientnet_lite0", num_classes=len(LABELS)).eval()
        self._neck = torch.nn.Conv2d(40, width, 1).eval()
        self._prompts = PromptEncoder(width, (grid, grid), (side, side), 16).eval()
        transformer = TwoWayTransformer(2, width, 4, 512)
        decoder = MaskDecoder(transformer_dim=width, transformer=transformer)
        self._decoder = decoder.eval()
        super().__init__()

    def prepare(self, file: bytes) -> Any:
        from PIL import Image

        image = Image.open(io.BytesIO(file)).convert("RGB")
        size_wh, resized = image.size, image.resize((384, 384), Image.Resampling.BILINEAR)
        pixels_3SS = self._torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        return size_wh, pixels_3SS / 127.5 - 1.0

    def encode(self, images: Sequence[Any]) -> list[Any]:
        with self._torch.inference_mode():
            pixels_B3SS = self._torch.stack([pixels_3SS for _, pixels_3SS in images])
            final, (map8,) = self._trunk.forward_intermediates(pixels_B3SS, indices=(2,))
            logits_BL = self._trunk.forward_head(final)
        sizes = [size_wh for size_wh, _ in images]
        return list(zip(sizes, logits_BL, map8, strict=True))

    def scores(self, encoded: Any) -> dict[str, float]:
        _, logits_L, _ = encoded
        return dict(zip(LABELS, logits_L.softmax(dim=0).tolist(), strict=True))

    def mask(self, encoded: Any, asked: Asked) -> str:
        torch, ((width, height), _, map_Chw) = self._torch, encoded
        x, y = asked.point
        with torch.inference_mode():
            point_112 = torch.tensor([[[x * 384 / width, y * 384 / height]]])
            sparse, dense = self._prompts((point_112, torch.ones(1, 1)), None, None)
            logits_11mm, _ = self._decoder(
                image_embeddings=self._neck(map_Chw[None]),
                image_pe=self._prompts.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            logits_HW = torch.nn.functional.interpolate(
                logits_11mm, (height, width), mode="bilinear", align_corners=False
            )[0, 0]
        return _rle((logits_HW > 0).numpy())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._text.embed(texts).numpy()


class Library(Work):
    """Our library in the precision of our service, without a cache."""

    def __init__(self) -> None:
        environment = os.environ
        self._model = load(environment["BENCH_PEER_CHECKPOINT"], environment["BENCH_PEER_DTYPE"])
        super().__init__()

    def prepare(self, file: bytes) -> Any:
        return self._model.prepare(file)

    def encode(self, images: Sequence[Any]) -> list[Any]:
        return self._model.encode_batch(images)

    def scores(self, encoded: Any) -> dict[str, float]:
        return {score.label: score.score for score in self._model.classify(encoded, LABELS)}

    def mask(self, encoded: Any, asked: Asked) -> str:
        from samclip_core import Prompt

        (answer,) = self._model.segment(encoded, [Prompt(points=(asked.point,))], False)
        return _rle(answer.masks_MHW[0])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.embed_text(texts)


def _rle(mask_HW: np.ndarray) -> str:
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))["counts"].decode()


def _grey() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (384, 384), "grey").save(file, "JPEG")
    return file.getvalue()


def chosen() -> Work:
    """Create the version that the environment names."""
    return {"Documented": Documented, "Library": Library}[os.environ["BENCH_PEER_WORK"]]()
