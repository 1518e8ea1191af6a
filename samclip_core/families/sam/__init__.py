"""SAM: its ViT-B, L and H, whose modules and keys all parts of a checkpoint for masks have."""

from samclip_core.families.clip import CLIP_L
from samclip_core.families.family import Family, ViTSize
from samclip_core.families.published import Half, Source, pair

VARIANTS = {
    "tiny": ViTSize(width=64, depth=4, heads=2, global_blocks=(1, 3), window=4),
    "vit_b": ViTSize(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": ViTSize(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTSize(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}
"""The published encoders, and a tiny one for tests."""
_PLACE = "https://dl.fbaipublicfiles.com/segment_anything", "Apache-2.0 (SAM, Meta)"
SAM_B = Source(*_PLACE, {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
}, 375)  # fmt: skip
SAM_H = Source(*_PLACE, {
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}, 2565)  # fmt: skip
SAM = Family(
    name="sam",
    title="SAM",
    files=("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"),
    backbones=VARIANTS,
    kind="vit-b",
    keep_float=r"encoder\.blocks\.0\.|\.neck\.0\.weight",
    models=(
        pair(
            *(
                "sam-b+clip-l",
                "for a GPU (slow on a CPU); SAM ViT-B's masks, CLIP ViT-L/14's words",
            ),
            *(Half(SAM_B, 90, 968), CLIP_L),
        ),
    ),
)
