"""CLIP and SigLIP, through the towers of open_clip and its files."""

from samclip_core.families.family import Family
from samclip_core.families.published import Half, Source

OPEN_CLIP_FILES = {"open_clip_config.json": "", "open_clip_model.safetensors": ""}
_TABLES = "zero-shot ImageNet {} %, COCO text to image R@1 {} % (open_clip's tables)"
_MAPS = "not aligned with texts: CLIP's training compared whole pictures alone"
CLIP_B = Half(
    Source(
        "hf://timm/vit_base_patch32_clip_224.openai@a6f597a30f7b82c51704746581f9a4e41421e878",
        "MIT (CLIP, OpenAI)",
        {
            "open_clip_model.safetensors":
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"
        }, 605,
    ),
    88, 9, _TABLES.format(63.3, 30.4), _MAPS, "ViT-B-32-quickgelu/openai",
)  # fmt: skip
CLIP_L = Half(
    Source(
        "hf://timm/vit_large_patch14_clip_224.openai@18d0535469bb561bf468d76c1d73aa35156c922b",
        "MIT (CLIP, OpenAI)",
        {
            "open_clip_model.safetensors":
            "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e"
        }, 1711,
    ),
    304, 162, _TABLES.format(75.5, 36.5), _MAPS, "ViT-L-14-quickgelu/openai",
)  # fmt: skip
SIGLIP_GIANT = Source(
    *("hf://timm/ViT-gopt-16-SigLIP2-384", "Apache-2.0 (SigLIP 2, Google)"),
    OPEN_CLIP_FILES | {"tokenizer.json": "", "tokenizer_config.json": ""},
    7490,
)
CLIP = Family(
    name="clip",
    title="CLIP, SigLIP",
    tower="open_clip",
    trunks=("VisionTransformer",),
    example="ViT-B-32, ViT-B-16-SigLIP2",
)
