"""``SamClip``: a checkpoint in one process that answers everything the services do.

T texts, D width, S side of the model frame, H W pixels of the original picture.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from samclip_core import checkpoint, dense, everything, scores, semantic
from samclip_core.clipped import clip_in_convolutions
from samclip_core.cores import Cores, last_level_cache, one_core
from samclip_core.edge import WIDEST
from samclip_core.errors import InvalidImage
from samclip_core.fused import cast_weights, fold_norms
from samclip_core.geometry import Geometry
from samclip_core.image import ImageLimits, decode
from samclip_core.network import SamClipNet, load_net
from samclip_core.sam_head import SamHead
from samclip_core.text import TextEncoder, check_texts, load_text_encoder
from samclip_core.types import (
    EverythingMask,
    ImageFeatures,
    MaskSet,
    Prompt,
    Score,
    SemanticMap,
)

PICTURES_PER_CORE = 4  # more gained nothing, and the first answers would wait longer
Dtype = Literal["float32", "bfloat16", "float16"]
Image = bytes | NDArray[np.uint8] | ImageFeatures
"""An encoded file, RGB uint8 H×W×3, or what ``SamClip.encode`` made of one."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture in the model frame, ready for the encoder: ``pixels_3SS`` RGB uint8."""

    pixels_3SS: NDArray[np.uint8]
    geometry: Geometry


class SamClip:
    """One image encoder, many answers. Holds no state of a request: threads may share it.

    ``net`` is the network itself, frozen, for those who want more than its answers.
    """

    def __init__(
        self,
        directory: Path,
        net: SamClipNet,
        text_encoder: TextEncoder,
        dtype: Dtype = "float32",
        limits: ImageLimits | None = None,
    ) -> None:
        """Use ``SamClip.load``."""
        self.config = checkpoint.read_config(directory)
        self.digest = checkpoint.digest(directory)
        self.sam_head = SamHead(self.config, net.prompt_encoder, net.mask_decoder)
        self.limits = limits or ImageLimits()
        self.net = net
        self._text_encoder = text_encoder
        self._dtype = getattr(torch, dtype)
        self._cores = Cores()
        self._pictures_per_core = self._fitting()
        # The same labels are asked of many pictures; texts cost far more than a look-up.
        self._embedded = lru_cache(maxsize=16)(self._embed_classes)

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path = "edge",
        device: str = "cpu",
        dtype: Dtype = "float32",
        limits: ImageLimits | None = None,
    ) -> Self:
        """Load a bundled checkpoint by name, or one from its directory.

        ``dtype`` is the precision of the image encoder; everything else is float32. Raises
        CheckpointError where the checkpoint is missing or damaged.
        """
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(get_args(Dtype))}")
        directory = checkpoint.resolve(name_or_dir)
        with one_core():
            net, text_encoder = load_net(directory), load_text_encoder(directory)
            fold_norms(net.image_encoder)
            if dtype != "float32":
                cast_weights(net.image_encoder, getattr(torch, dtype))
                cast_weights(net.clip_head, getattr(torch, dtype))
            if device == "cpu":
                clip_in_convolutions(net)
        return cls(directory, net.to(device), text_encoder.to(device), dtype, limits)

    def prepare(self, image: bytes | NDArray[np.uint8]) -> Prepared:
        """Decode where need be, and bring into the model frame; no model is run.

        Raises the errors of ``samclip_core.image.decode``.
        """
        image_HW3 = decode(image, self.limits) if isinstance(image, bytes) else image
        shape = image_HW3.shape
        if image_HW3.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not image_HW3.size:
            raise InvalidImage(f"an array of {image_HW3.dtype} {shape}: expected uint8 RGB, H×W×3")
        geometry = Geometry(shape[0], shape[1], self.config.image_size)
        return Prepared(geometry.resize(image_HW3), geometry)

    def encode(self, image: Image | Prepared) -> ImageFeatures:
        """Encode one picture, once for every question about it; features pass through."""
        if isinstance(image, ImageFeatures):
            return image
        prepared = image if isinstance(image, Prepared) else self.prepare(image)
        return self.encode_batch([prepared])[0]

    def encode_batch(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        """Encode prepared pictures together, in order; all features float32."""
        return list(self.encode_each(batch))

    def encode_each(self, batch: Sequence[Prepared], alone: bool = True) -> Iterator[ImageFeatures]:
        """The same, each as soon as it and those before it are done.

        A picture's features do not depend on what else is in the batch. A GPU is given all at once,
        each core of a CPU that is free its share, of which it takes a few at a time. ``alone``: one
        picture may have all cores, as no other is about to come.
        """
        if self.device.type == "cpu":
            share = -(-len(batch) // self._cores.free)
            at_once = min(max(share, 1), self._pictures_per_core)
        else:  # always from one thread: each that asks a GPU takes memory of it
            at_once, alone = len(batch), True
        parts = [batch[start : start + at_once] for start in range(0, len(batch), at_once)]
        for encoded in self._cores.map(self._encode, parts, alone):
            yield from encoded

    def _fitting(self) -> int:
        """Pictures whose widest maps, what is read and what is written, fit a core's part of cache.

        A third of a lone picture's time on a core is to call some hundred layers and to lay their
        weights out, and several pictures share it (edge, bfloat16: 47 ms one, 34 of four). Where
        they wait for the memory instead, it does not pay; nor where the layers are large anyway.
        """
        if self.config.kind != "edge":
            return 1
        map_bytes = WIDEST * self.config.image_size**2 * self._dtype.itemsize
        fitting = last_level_cache() // (2 * map_bytes * self._cores.number)
        return min(max(fitting, 1), PICTURES_PER_CORE)

    @torch.inference_mode()
    def _encode(self, batch: Sequence[Prepared]) -> list[ImageFeatures]:
        sizes = [(item.geometry.input_height, item.geometry.input_width) for item in batch]
        pixels_B3SS = torch.from_numpy(np.stack([item.pixels_3SS for item in batch]))
        with self._autocast():
            encoded = self.net.encode(
                pixels_B3SS.to(self.device).float(), torch.tensor(sizes, device=self.device)
            )
        outputs = [output.float().cpu().numpy() for output in encoded]
        return [
            replace(ImageFeatures(item.geometry, *arrays), dtype=self.dtype)
            for item, *arrays in zip(batch, *outputs, strict=True)
        ]

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as they stand: T×D, rows of length 1. Raises InvalidLabels."""
        (text_TD,) = self._cores.map(self._text_encoder.embed, [scores.as_texts(texts)])
        return text_TD.cpu().numpy()

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids of texts, for ``embed_tokens``; no model is run. Raises InvalidLabels."""
        check_texts(texts)
        return self._text_encoder.tokenize(texts)

    def embed_tokens(self, ids_TN: torch.Tensor) -> NDArray[np.float32]:
        """Embed what ``tokenize`` returned: T×D, rows of length 1."""
        (text_TD,) = self._cores.map(self._text_encoder.embed_tokens, [ids_TN])
        return text_TD.cpu().numpy()

    def embed_image(self, image: Image) -> NDArray[np.float32]:
        """The pooled embedding: D, of length 1, comparable with ``embed_text``."""
        return scores.unit(_present(self.encode(image).clip_pooled_D, "CLIP_POOLED"))

    def classify(
        self,
        image: Image,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> list[Score]:
        """Score each label, best first; without ``templates`` the checkpoint's own are used.

        Raises InvalidLabels.
        """
        labels = scores.as_texts(labels)
        text_LD = self._class_embeddings(labels, templates)
        return scores.classify(
            self.embed_image(image), text_LD, labels, self.config.logit_scale, top_k
        )

    def segment(
        self, image: Image, prompts: Sequence[Prompt], multimask: bool = True
    ) -> list[MaskSet]:
        """Answer each prompt with masks, best first: three with ``multimask``, else one.

        Raises InvalidPrompt.
        """
        return self.sam_head.segment(self.encode(image), prompts, multimask)

    def segment_text(
        self,
        image: Image,
        labels: Sequence[str],
        background: bool = False,
        refine: bool = False,
    ) -> SemanticMap:
        """Give every pixel one of the labels, or with ``background`` none.

        ``refine`` sharpens the outlines with the SAM head. Raises InvalidLabels.
        """
        labels = scores.as_texts(labels)
        features, text_LD = self.encode(image), self._class_embeddings(labels)
        background_KD = None
        if background:
            background_KD = self._class_embeddings(dense.background_words(labels))
        scale = self.config.logit_scale
        if refine:
            return semantic.refine(
                features, text_LD, labels, scale, self.sam_head, background, background_KD
            )
        return semantic.segment_text(features, text_LD, labels, scale, background, background_KD)

    def segment_everything(
        self, image: Image, points_per_side: int | None = None, labels: Sequence[str] = ()
    ) -> list[EverythingMask]:
        """Find every object, largest first; each gets the likeliest of ``labels`` if there are any.

        ``points_per_side`` None: the checkpoint's own. Raises InvalidLabels.
        """
        labels = scores.as_texts(labels)
        features = self.encode(image)
        text_LD = self._class_embeddings(labels) if labels else None
        masks = everything.segment_everything(
            self.sam_head, features, points_per_side or self.config.points_per_side
        )
        if text_LD is None:
            return masks
        return everything.name_masks(masks, features, text_LD, labels, self.config.logit_scale)

    def _class_embeddings(
        self, labels: Sequence[str], templates: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        templates = self.config.templates if templates is None else scores.as_texts(templates)
        return self._embedded(tuple(labels), tuple(templates))

    def _embed_classes(
        self, labels: tuple[str, ...], templates: tuple[str, ...]
    ) -> NDArray[np.float32]:
        text_LD = scores.class_embeddings(self.embed_text, labels, templates)
        text_LD.setflags(write=False)  # every later answer shares it
        return text_LD

    @property
    def dtype(self) -> str:
        """The precision in which the image encoder computes: float32, bfloat16 or float16."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next(self.net.parameters()).device

    def _autocast(self) -> AbstractContextManager[object]:
        lower = self._dtype != torch.float32
        return torch.autocast(self.device.type, self._dtype, enabled=lower)


def _present(array: NDArray | None, output: str) -> NDArray:
    if array is None:
        raise ValueError(f"these features have no {output}: encode with {output}")
    return array
