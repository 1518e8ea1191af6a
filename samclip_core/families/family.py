"""``Family``: all that the rest of the program asks about one kind of published model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from types import ModuleType

from samclip_core import guarded
from samclip_core.families.published import Published

AGAIN = "download or convert the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """The sizes of one of SAM's ViTs, or of the last stage of an encoder that ends in one."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...] = ()
    window: int = 14


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a network, which config.json states under its family's ``key``."""

    @property
    def masks(self) -> bool:
        """Whether the network has what makes masks."""
        return True

    def check(self, where: str) -> None:
        """Raise CheckpointError, which names ``where`` they are, if no network has these sizes."""
        guarded.check_layers(asdict(self), where)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of published model, ``title`` for people.

    Its folder, ``name``, has those of these modules that it needs; nothing else imports them:

    network    PyTorch: ``image_encoder(config)``; ``prompt_encoder``, ``mask_decoder`` if they are
               not SAM's; ``clip_head(config)`` of a ``kind``; ``image_tower(text)`` and
               ``text_encoder(text, tokenizer_json)`` of a ``tower``; ``read(state)`` gives our keys
               to published tensors, and ``describe(state)`` the fields of ``VIT_B`` that differ
    tokenizer  ``of(tokenizer_json, text)`` of a ``tower``
    files      if it ``reads_folders`` with words: ``is_here(folder)``, and ``load(folder, side)``,
               whose result has the interface of ``OfficialClip``
    """

    name: str
    title: str
    models: tuple[Published, ...] = ()  # rows; a pair is one of the family that came last
    licence: str = ""  # of weights that are bundled with this program

    # Which files and checkpoints have a part of it.
    files: tuple[str, ...] = ()  # published for masks, the usual one first
    keys: tuple[str, ...] = ("",)  # beginnings of keys, of which one is in each of them
    own_key: str = ""  # the beginning of a key that only our names of its tensors have
    backbones: Mapping[str, ViTSize | None] = field(default_factory=dict)
    """Image encoders, with the ViT whose tokens a trained CLIP head reads, if there is one."""
    key: str = ""  # in config.json, of its ``sizes``
    sizes: type[Sizes] = Sizes
    kind: str = ""  # of checkpoints whose CLIP head is of this family
    tower: str = ""  # in ``TextConfig``
    reads_folders: bool = False
    trunks: tuple[str, ...] = ()
    """Classes of open_clip's and timm's towers that embed patches, as those of ``example`` do."""
    example: str = ""

    # How its image encoder reads a picture.
    stride: int | None = 16  # pixels per cell of the image embedding; None if variants differ
    step: int = 1  # cells, of which the side of a frame is a multiple
    any_side: bool = False  # whether the published weights read frames of other sides
    one_side: bool = False  # whether a checkpoint reads frames of one side alone
    squash: bool = False  # whether pictures fill the frame; otherwise they are padded
    keep_float: str = ""
    """A regular expression: layers of the image encoder whose weights' names contain a match are
    float in an int8 graph. First layers are, because all later ones inherit their errors."""

    # How its masks are made.
    prompt_side: int | None = None  # of the frame of points and masks, if it is not the encoder's
    fine: int = 0  # channels of finer maps that masks need, in widths of the image embedding
    pads_boxes: bool = False  # whether a point of padding follows a box
    least_stability: float = 0.0  # below it, a single mask gives way to the best of three
    scores_objects: bool = False  # whether the decoder tells how sure it is of an object

    def module(self, name: str) -> ModuleType:
        """Import one of its modules, which lie above ``nn``."""
        return import_module(f"{__package__}.{self.name}.{name}")
