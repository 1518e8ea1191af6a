"""The contents of config.json: a checkpoint's architecture, text tower and default settings."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from samclip_core import families, guarded, typed_json
from samclip_core.calibration import UNCALIBRATED, Calibration
from samclip_core.errors import CheckpointError, InvalidRequest
from samclip_core.families.family import AGAIN, Family, ViTSize
from samclip_core.geometry import PREPROCESS_VERSION

Kind = Literal["edge", "vit-b", "pair", "radio"]
Task = Literal["classify", "semantic", "retrieval"]
Filter = Literal["bilinear", "bicubic"]
"""Filters that resize pictures for an image tower, antialiased as Pillow's are."""
MAX_SIDE = 4096
"""Pixels of a frame's side."""
MAX_POINTS_PER_SIDE = 64
MAX_LOGIT_SCALE = 1000
MAX_TEMPLATES, MAX_TEMPLATE, MAX_NAME = 256, 1000, 128
"""Templates, and characters of one and of a name."""


@dataclass(frozen=True, kw_only=True)
class ClipHeadConfig:
    """The CLIP head: a ViT uses ``layers``, and its pooling, the edge ``width`` and ``hidden``."""

    layers: int = 3
    pool: Literal["max"] = "max"
    width: int = 1280
    hidden: int = 1000


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """SAM's mask decoder, of width ``embed_dim``; the defaults are SAM's own."""

    depth: int = 2
    heads: int = 8
    mlp: int = 2048


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """An image tower that is not open_clip's: a ViT that reads frames of ``side`` pixels.

    ``hidden`` is the width of an MLP's first layer, both halves of it if it is ``gated`` (SwiGLU).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool
    patch: int
    side: int


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: a family's ``tower``, of these sizes, or an open_clip model's.

    ``open_clip`` has the content of the model's open_clip_config.json. Without it, the architecture
    is the one that open_clip knows as ``model``. ``image`` is the image tower of another family.
    ``filter`` resizes pictures for an image tower, bicubically if there is none.
    """

    tower: str
    model: str = ""
    open_clip: dict[str, Any] | None = None
    image: ImageTowerConfig | None = None
    filter: Filter | None = None
    layers: int = 6
    width: int = 384
    heads: int = 12
    hidden: int = 1536
    vocabulary: int = 30522
    max_tokens: int = 128


@dataclass(frozen=True, kw_only=True)
class TaskSizes:
    """The side of the model frame, in pixels, for the tasks that need only the CLIP head."""

    classify: int
    semantic: int
    retrieval: int


@dataclass(frozen=True, kw_only=True)
class SamClipConfig:
    """The architecture and defaults of one checkpoint: the content of config.json.

    ``image_size`` is the side of the square model frame in pixels, ``stride`` the side of a cell of
    the image embedding in pixels, ``embed_dim`` the embedding's width, ``text_dim`` the width of
    the space that images and texts share. Without a ``decoder`` there are neither masks nor an
    image embedding. ``backbone`` is one of a family's; ``networks`` has the sizes that it does not
    tell, by the families' ``key`` in config.json. A ``pair`` uses the image tower of ``text.model``
    as its CLIP head, a ``radio`` an adaptor (``clip_head`` is null).
    ``logit_scale`` multiplies a cosine before the softmax over labels. Each template contains one
    ``{}`` for the label. Without ``task_sizes``, every task uses ``image_size``. Without
    ``calibration``, which ``samclip calibrate`` fits, answers say that they are uncalibrated.
    """

    kind: Kind
    name: str
    backbone: str
    image_size: int
    stride: int
    embed_dim: int
    text_dim: int
    clip_head: ClipHeadConfig | None = ClipHeadConfig()
    decoder: DecoderConfig | None = DecoderConfig()
    text: TextConfig
    logit_scale: float
    templates: tuple[str, ...] = ("a photo of a {}.",)
    mask_threshold: float = 0.0
    points_per_side: int
    min_predicted_iou: float
    min_stability: float
    preprocess: str = PREPROCESS_VERSION
    task_sizes: TaskSizes | None = None
    calibration: Calibration | None = None
    networks: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The family of the image encoder and of the masks."""
        return families.of_backbone(self.backbone)

    @property
    def vit(self) -> ViTSize | None:
        """The ViT whose tokens a trained CLIP head reads; None if there is none."""
        return self.family.backbones.get(self.backbone)

    @property
    def fitted(self) -> Calibration:
        """The calibration, or neutral numbers if there is none; all of it is about masks."""
        return self.calibration if self.calibration and self.masks else UNCALIBRATED

    @property
    def uncalibrated(self) -> bool:
        """Whether the scores of texts are no probabilities, because nobody has fitted them."""
        return self.fitted.presence is None

    @property
    def sure(self) -> float:
        """The ``sure`` of ``Presence``; 0 if there is none."""
        presence = self.fitted.presence
        return (presence and presence.sure) or 0.0

    @property
    def masks(self) -> bool:
        """Whether the checkpoint can make masks, and has the SAM embedding that they need."""
        return self.decoder is not None

    @property
    def squash(self) -> bool:
        """Whether pictures are squashed to fill the model's frame."""
        return self.family.squash

    @property
    def fine_dim(self) -> int:
        """Channels of the finer maps that masks need; 0 if they need none."""
        return self.family.fine * self.embed_dim

    @property
    def grid(self) -> int:
        """Cells per side of the image embedding."""
        return self.image_size // self.stride

    @property
    def prompt_size(self) -> int:
        """The side, in pixels, of the frame in which the SAM head reads points and makes masks."""
        return self.family.prompt_side or self.image_size

    @property
    def logits_side(self) -> int:
        """Cells per side of the SAM head's low-resolution logits."""
        return 4 * self.grid

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides at which pictures are encoded, without duplicates; ``image_size`` first."""
        others = asdict(self.task_sizes).values() if self.task_sizes else ()
        return tuple(dict.fromkeys((self.image_size, *others)))

    @property
    def sam_sizes(self) -> tuple[int, ...]:
        """The sides at which the SAM embedding is used; ``image_size``, that of masks, first."""
        used = (self.image_size, self.size_of("semantic")) if self.masks else ()
        return tuple(dict.fromkeys(used))

    def size_of(self, task: Task) -> int:
        """Return the side of the model frame for a task that needs only the CLIP head."""
        return getattr(self.task_sizes, task) if self.task_sizes else self.image_size

    def check_size(self, size: int) -> None:
        """Raise InvalidRequest unless the image encoder accepts a frame of this side."""
        fixed, step = self.family.one_side, self.stride * self.family.step
        if (fixed and size != self.image_size) or size < step or size % step:
            only = f"choose a positive multiple of {step}"
            if fixed:
                only = f"{self.family.title} reads {self.image_size}"
            raise InvalidRequest(
                f"the image encoder of {self.name} cannot read a frame of {size} pixels: {only}"
            )

    def to_json(self) -> str:
        values = asdict(self)
        values |= dict.fromkeys(families.SIZES) | values.pop("networks")
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read config.json. Raises CheckpointError for an unknown, missing or ill-typed key."""
        try:
            values = guarded.parsed(text)
        except ValueError as error:
            raise CheckpointError(f"config.json is not JSON ({error}): {AGAIN}") from error
        guarded.check_layers(values, "config.json")
        networks = {
            key: typed_json.read(sizes, value, f"config.json: {key}")
            for key, sizes in families.SIZES.items()
            if isinstance(values, dict) and (value := values.pop(key, None)) is not None
        }
        config: Self = replace(typed_json.read(cls, values, "config.json"), networks=networks)
        if wrong := next(config._misfits(), None):
            raise CheckpointError(f"config.json: {wrong}: {AGAIN}")
        for network in networks.values():
            network.check("config.json")
        config.fitted.check(config.text_dim)
        return config

    def _misfits(self) -> Iterator[str]:
        """Yield what does not fit together."""
        yield from self._excesses()
        if self.preprocess != PREPROCESS_VERSION:
            yield f"preprocessing version {self.preprocess!r}, expected {PREPROCESS_VERSION!r}"
        step = self.stride * self.family.step
        if self.image_size < 1 or step < 1 or self.image_size % step:
            yield f"image_size {self.image_size} is not a multiple of {step}"
        yield from self._misfits_of_families()
        for size in self.sizes[1:]:
            try:
                self.check_size(size)
            except InvalidRequest as error:
                yield f"task_sizes: {error}"
        if not self.templates or any(one.count("{}") != 1 for one in self.templates):
            yield f"templates {list(self.templates)}: at least one, and each needs exactly one {{}}"

    def _excesses(self) -> Iterator[str]:
        """Yield what would take any time or memory, or mislead who reads it."""
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            yield f"name {self.name[:MAX_NAME]!r}: expected up to {MAX_NAME} printable characters"
        side = max(*self.sizes, self.text.image.side if self.text.image else 0)
        if side > MAX_SIDE:
            yield f"a frame of {side} pixels, expected up to {MAX_SIDE}"
        if self.text_dim < 1 or self.embed_dim < (1 if self.masks else 0):
            yield f"text_dim {self.text_dim} and embed_dim {self.embed_dim}: expected 1 or more"
        if not 0 < self.logit_scale <= MAX_LOGIT_SCALE:
            yield f"logit_scale {self.logit_scale:g}, expected above 0, up to {MAX_LOGIT_SCALE}"
        for key in ("min_predicted_iou", "min_stability"):
            if not 0 <= getattr(self, key) <= 1:
                yield f"{key} {getattr(self, key):g}, expected 0 to 1"
        if not 1 <= self.points_per_side <= MAX_POINTS_PER_SIDE:
            yield f"points_per_side {self.points_per_side}, expected 1 to {MAX_POINTS_PER_SIDE}"
        if len(self.templates) > MAX_TEMPLATES or any(
            len(one) > MAX_TEMPLATE for one in self.templates
        ):
            yield f"expected up to {MAX_TEMPLATES} templates of up to {MAX_TEMPLATE} characters"

    def _misfits_of_families(self) -> Iterator[str]:
        if self.backbone not in self.family.backbones:
            known = ", ".join(name for one in families.FAMILIES for name in one.backbones)
            yield f"{self.backbone} is none of the encoders {known}"
        if self.family.stride not in (None, self.stride):
            yield f"{self.backbone} has the stride {self.family.stride}, found {self.stride}"
        if self.text.tower not in families.TOWERS:
            yield f"text.tower {self.text.tower!r} is not one of {', '.join(families.TOWERS)}"
        elif self.text.image and not families.TOWERS[self.text.tower].reads_folders:
            yield f"text.image has an image tower, which is of no text.tower {self.text.tower!r}"
        if self.text.open_clip is not None and not _describes(self.text.open_clip):
            yield "text.open_clip is not the content of an open_clip_config.json"
        for family in (self.family, families.KINDS.get(self.kind)):
            if family and family.key and family.key not in self.networks:
                yield f"{family.key} is null, but {family.title} needs its sizes"
        network = self.networks.get(self.family.key)
        if self.masks != (network is None or network.masks):
            yield "the decoder and the encoder's part for masks belong together"
        head = families.KINDS.get(self.kind)
        any_vit = head and all(head.backbones.values()) and self.vit
        # A head whose family has sizes brings an encoder of its own beside another one.
        if head and not (head.key or any_vit or self.backbone in head.backbones):
            known = ", ".join(head.backbones)
            yield f"a CLIP head of kind {self.kind} reads {known}, not {self.backbone}"


def _describes(open_clip: dict[str, Any]) -> bool:
    """Return whether an open_clip_config.json has the objects that a network is built from."""
    model: Any = open_clip.get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if not isinstance(text, dict):
        return False
    others = model.get("vision_cfg"), open_clip.get("preprocess_cfg", {})
    return all(isinstance(each, dict) for each in (text.get("tokenizer_kwargs", {}), *others))


VIT_B = SamClipConfig(
    kind="vit-b",
    name="vit-b",
    backbone="vit_b",
    image_size=1024,
    stride=16,
    embed_dim=256,
    text_dim=768,
    text=TextConfig(tower="open_clip", model="ViT-L-14"),
    logit_scale=100.0,
    points_per_side=32,
    min_predicted_iou=0.88,
    min_stability=0.95,
    task_sizes=TaskSizes(classify=336, semantic=448, retrieval=336),  # as the paper evaluates
)

EDGE = SamClipConfig(
    kind="edge",
    name="edge",
    backbone="tf_efficientnet_lite0",
    image_size=384,
    stride=8,
    embed_dim=128,
    text_dim=384,
    decoder=DecoderConfig(heads=4, mlp=512),
    text=TextConfig(tower="sentence"),
    logit_scale=20.0,
    points_per_side=16,
    min_predicted_iou=0.35,  # the small decoder rarely predicts more, even for its best masks
    min_stability=0.6,
)
