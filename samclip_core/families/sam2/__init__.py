"""SAM 2.1: masks of pictures that fill the frame, squashed, from maps of three resolutions."""

from dataclasses import dataclass

from samclip_core.errors import CheckpointError
from samclip_core.families.clip import CLIP_L
from samclip_core.families.family import AGAIN, Family, Sizes
from samclip_core.families.published import Half, Source, pair

BACKBONE = "sam2.1"


@dataclass(frozen=True, kw_only=True)
class Sam2Config(Sizes):
    """The encoder: width and heads of its first stage, which each stage doubles.

    ``depths`` count the blocks of its four stages, ``windows`` have the sides of theirs, and
    ``global_blocks`` have none.
    """

    width: int
    depths: tuple[int, ...]
    heads: int
    windows: tuple[int, ...]
    global_blocks: tuple[int, ...]

    def check(self, where: str) -> None:
        """See ``Sizes``; expects a published encoder's."""
        if SIZES.get((self.width, self.depths)) != self:
            raise CheckpointError(
                f"{where}: sam2 has stages of {self.depths} blocks, width {self.width} "
                f"and windows {self.windows}, which is none of SAM 2.1's published sizes: {AGAIN}"
            )


_OTHERS = (8, 4, 14, 7)
_PUBLISHED = (
    (96, (1, 2, 7, 2), 1, _OTHERS, (5, 7, 9)),
    (96, (1, 2, 11, 2), 1, _OTHERS, (7, 10, 13)),
    (112, (2, 3, 16, 3), 2, _OTHERS, (12, 16, 20)),
    (144, (2, 6, 36, 4), 2, (8, 4, 16, 8), (23, 33, 43)),
)
SIZES: dict[tuple[int, tuple[int, ...]], Sam2Config] = {
    (width, depths): Sam2Config(
        width=width, depths=depths, heads=heads, windows=windows, global_blocks=blocks
    )
    for width, depths, heads, windows, blocks in _PUBLISHED
}
"""The published encoders by width and depths. The shapes of the weights tell nothing else."""
_HUB, _LICENCE = "hf://facebook/sam2.1-hiera-", "Apache-2.0 (SAM 2.1, Meta)"
TINY = Half(Source(f"{_HUB}tiny", _LICENCE, {"sam2.1_hiera_tiny.pt": ""}, 156), 27, 290)
LARGE = Half(Source(f"{_HUB}large", _LICENCE, {"sam2.1_hiera_large.pt": ""}, 898), 213, 1821)
SAM2 = Family(
    name="sam2",
    title="SAM 2.1",
    files=tuple(f"sam2.1_hiera_{size}.pt" for size in ("tiny", "small", "base_plus", "large")),
    keys=("image_encoder.trunk.", "vision_encoder.backbone."),  # the publisher's, transformers'
    own_key="image_encoder.positions",
    backbones={BACKBONE: None},
    key="sam2",
    sizes=Sam2Config,
    step=2,
    one_side=True,  # a table for its positions
    squash=True,
    fine=3,
    pads_boxes=True,
    least_stability=0.98,
    scores_objects=True,
    keep_float=r"encoder\.(blocks\.0\.|patches|lateral|conv_s)",
    models=(
        pair(
            *("sam2.1-large+clip-l", "for a GPU; masks of SAM 2.1 large, CLIP ViT-L/14's words"),
            *(LARGE, CLIP_L),
        ),
    ),
)
