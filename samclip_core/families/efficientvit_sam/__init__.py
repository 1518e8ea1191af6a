"""EfficientViT-SAM: SAM's masks from a CNN with linear attention, in a frame of 1024 pixels."""

from dataclasses import dataclass

from samclip_core.errors import CheckpointError
from samclip_core.families.clip import CLIP_B, CLIP_L
from samclip_core.families.family import AGAIN, Family, Sizes
from samclip_core.families.published import BOXES, Half, Source, pair

BACKBONE = "efficientvit-sam"


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig(Sizes):
    """The encoder: the widths of its stages, five (L) or six (XL).

    ``depths`` count each stage's blocks after its first layer; ``head`` is the width of a head of
    attention.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head: int
    neck_width: int
    neck_depth: int

    def check(self, where: str) -> None:
        """See ``Sizes``."""
        super().check(where)
        stages, least = len(self.widths), min(*self.widths, self.head, self.neck_width)
        fits = stages in (5, 6) and stages == len(self.depths) and least > 0
        if not fits or any(width % self.head for width in self.widths[-2:]):
            raise CheckpointError(
                f"{where} has {stages} stages of an EfficientViT-SAM, of widths {self.widths}, and "
                f"attention heads of {self.head}: expected 5 stages (L) or 6 (XL), whose widths "
                f"are multiples of the heads': {AGAIN}"
            )


_PAGE = "hf://mit-han-lab/efficientvit-sam", "Apache-2.0 (EfficientViT-SAM, MIT Han Lab)"
_AP = "EfficientViT-SAM"
L0 = Half(Source(*_PAGE, {"efficientvit_sam_l0.pt": ""}, 139), 31, 69, BOXES.format(45.7, _AP))
XL1 = Half(Source(*_PAGE, {"efficientvit_sam_xl1.pt": ""}, 814), 199, 644, BOXES.format(47.8, _AP))
EFFICIENTVIT_SAM = Family(
    name="efficientvit_sam",
    title="EfficientViT-SAM",
    files=tuple(f"efficientvit_sam_{size}.pt" for size in ("l0", "l1", "l2", "xl0", "xl1")),
    keys=("image_encoder.backbone.",),
    own_key="image_encoder.neck.inputs.",
    backbones={BACKBONE: None},
    key="efficientvit",
    sizes=EfficientViTConfig,
    stride=None,
    step=4,  # five stages halve a frame to cells of 8 pixels, six to cells of 16
    prompt_side=1024,
    keep_float=r"encoder\.stages\.0\.",
    models=(
        pair(
            "efficientvit-sam-l0+clip-b32",
            "for CPUs and laptops; masks of EfficientViT-SAM L0 from frames of 512 pixels, CLIP "
            "ViT-B/32's words",
            *(L0, CLIP_B),
        ),
        pair(
            "efficientvit-sam-xl1+clip-l14",
            "for a GPU; masks of EfficientViT-SAM XL1, CLIP ViT-L/14's words",
            *(XL1, CLIP_L),
        ),
    ),
)
