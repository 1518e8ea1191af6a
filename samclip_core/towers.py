"""The sizes of published networks, in config.json."""

from dataclasses import asdict, dataclass

from samclip_core import guarded
from samclip_core.errors import CheckpointError

AGAIN = "download or convert the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class TipsConfig:
    """TIPSv2's image tower: a ViT with two class tokens, which reads frames of ``side`` pixels.

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
class MlpConfig:
    """An adaptor of RADIO: width of its input's layer, its residual blocks, and its output."""

    hidden: int
    blocks: int
    output: int


@dataclass(frozen=True, kw_only=True)
class RadioConfig:
    """RADIO's ViT and those of its adaptors that are used: for words, and for SAM's masks if any.

    ``prefix`` counts the tokens before the patches; ``class_token`` is the one that the adaptor for
    words reads. The table of positions has ``table``×``table`` cells. ``normalised`` patches are
    shifted and rotated before the adaptors read them.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    prefix: int
    class_token: int
    table: int
    words: MlpConfig
    sam: MlpConfig | None
    normalised: bool


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """EfficientViT-SAM's encoder: the widths of its stages, five (L) or six (XL).

    ``depths`` count each stage's blocks after its first layer; ``head`` is the width of a head of
    attention.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head: int
    neck_width: int
    neck_depth: int

    def check(self, where: str) -> None:
        """Raise CheckpointError, which names ``where`` they are, if no encoder has these sizes."""
        guarded.check_layers(asdict(self), where)
        stages, least = len(self.widths), min(*self.widths, self.head, self.neck_width)
        fits = stages in (5, 6) and stages == len(self.depths) and least > 0
        if not fits or any(width % self.head for width in self.widths[-2:]):
            raise CheckpointError(
                f"{where} has {stages} stages of an EfficientViT-SAM, of widths {self.widths}, and "
                f"attention heads of {self.head}: expected 5 stages (L) or 6 (XL), whose widths "
                f"are multiples of the heads': {AGAIN}"
            )


@dataclass(frozen=True, kw_only=True)
class Sam2Config:
    """SAM 2.1's encoder: width and heads of its first stage, which each stage doubles.

    ``depths`` count the blocks of its four stages, ``windows`` have the sides of theirs, and
    ``global_blocks`` have none.
    """

    width: int
    depths: tuple[int, ...]
    heads: int
    windows: tuple[int, ...]
    global_blocks: tuple[int, ...]

    def check(self) -> None:
        """Raise CheckpointError if no encoder was published with these sizes."""
        if SAM2_SIZES.get((self.width, self.depths)) != self:
            raise CheckpointError(
                f"config.json: sam2 has stages of {self.depths} blocks, width {self.width} "
                f"and windows {self.windows}, which is none of SAM 2.1's published sizes: {AGAIN}"
            )


_OTHERS = (8, 4, 14, 7)
_PUBLISHED = (
    (96, (1, 2, 7, 2), 1, _OTHERS, (5, 7, 9)),
    (96, (1, 2, 11, 2), 1, _OTHERS, (7, 10, 13)),
    (112, (2, 3, 16, 3), 2, _OTHERS, (12, 16, 20)),
    (144, (2, 6, 36, 4), 2, (8, 4, 16, 8), (23, 33, 43)),
)
SAM2_SIZES: dict[tuple[int, tuple[int, ...]], Sam2Config] = {
    (width, depths): Sam2Config(
        width=width, depths=depths, heads=heads, windows=windows, global_blocks=blocks
    )
    for width, depths, heads, windows, blocks in _PUBLISHED
}
"""SAM 2.1's published encoders by width and depths. The shapes of the weights tell nothing else."""
