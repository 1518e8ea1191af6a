"""TIPSv2: an image tower whose patches are aligned with texts, and its text tower."""

from samclip_core.families.efficientvit_sam import L0
from samclip_core.families.family import Family
from samclip_core.families.published import Half, Source, pair

B = Half(
    Source(
        "hf://google/tipsv2-b14",
        "CC-BY-4.0 (TIPSv2's weights, Google; its code is Apache-2.0)",
        dict.fromkeys(("config.json", "model.safetensors", "tokenizer.model"), ""),
        785,
    ),
    *(86, 211, "Flickr text to image R@1 80.0 % (TIPSv2's page); ImageNet: not published"),
    "aligned with texts; zero-shot ADE20k mIoU 17.4, from windows (TIPSv2's page)",
)
TIPS = Family(
    name="tips",
    title="TIPSv2",
    tower="tips",
    reads_folders=True,
    models=(
        pair(
            "laptop",
            "for CPUs and laptops; masks of EfficientViT-SAM L0, TIPSv2-B's words, and maps "
            "aligned with texts",
            *(L0, B),
        ),
    ),
)
