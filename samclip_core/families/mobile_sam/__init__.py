"""MobileSAM: SAM's masks from a TinyViT, which reads frames of any side."""

from samclip_core.families.clip import CLIP_B
from samclip_core.families.family import Family, ViTSize
from samclip_core.families.published import BOXES, Half, Source, pair

BACKBONE = "mobile-sam"
FILE = Source(
    "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
    "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights",
    "Apache-2.0 (MobileSAM)",
    {"mobile_sam.pt": "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"},
    41,
)
MOBILE_SAM = Family(
    name="mobile_sam",
    title="MobileSAM",
    files=("mobile_sam.pt",),
    keys=("image_encoder.layers.",),
    own_key="image_encoder.patch_embed.conv1.",
    backbones={BACKBONE: ViTSize(width=320, depth=2, heads=10, window=7)},  # its last stage
    any_side=True,
    keep_float=r"\.patch_embed\.conv|encoder\.stages\.0\.|\.neck\.0\.weight",
    models=(
        pair(
            *("mobile", "for CPUs and laptops; MobileSAM's masks, CLIP ViT-B/32's words"),
            *(Half(FILE, 6, 78, BOXES.format(39.4, "EdgeSAM")), CLIP_B),
        ),
    ),
)
