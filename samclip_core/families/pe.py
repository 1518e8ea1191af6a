"""PE-Core, through the towers of open_clip and its files."""

from samclip_core.families.clip import OPEN_CLIP_FILES
from samclip_core.families.efficientvit_sam import L0
from samclip_core.families.family import Family
from samclip_core.families.published import Half, Source, pair
from samclip_core.families.sam2 import TINY

_LICENCE = "Apache-2.0 (Perception Encoder, Meta)"
_WORDS = "PE-Core-S/16's words from 384 pixels"
S = Half(
    Source("hf://timm/PE-Core-S-16-384", _LICENCE, OPEN_CLIP_FILES, 350),
    *(24, 32, "zero-shot ImageNet 72.7 %, COCO text to image R@1 42.6 % (PE-Core's page)"),
    "not aligned with texts: PE-Core's training compared whole pictures alone",
)
PE = Family(
    name="pe",
    title="PE-Core",
    trunks=("Eva",),
    example="PE-Core-S-16-384",
    models=(
        pair(
            "efficientvit-sam-l0+pe-core-s",
            f"for CPUs and laptops; masks of EfficientViT-SAM L0, {_WORDS}",
            *(L0, S),
        ),
        pair(
            "sam2.1-tiny+pe-core-s",
            f"for a GPU (slow on a CPU); masks of SAM 2.1 tiny, {_WORDS}",
            *(TINY, S),
        ),
    ),
)
