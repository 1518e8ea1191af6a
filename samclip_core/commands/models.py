"""``samclip models``: the published models that ``samclip pull`` makes checkpoints of."""

import json
import sys
from dataclasses import asdict, dataclass

from samclip_core.commands import measured
from samclip_core.errors import CheckpointError, plain
from samclip_core.io import checkpoint
from samclip_core.io.sources import Source

SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
SAM_LICENCE = "Apache-2.0 (SAM, Meta)"
SAM_B = Source(SAM_FILES, SAM_LICENCE, {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
}, 375)  # fmt: skip
SAM_H = Source(SAM_FILES, SAM_LICENCE, {
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}, 2565)  # fmt: skip
MOBILE_SAM = Source(
    "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
    "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights",
    "Apache-2.0 (MobileSAM)",
    {"mobile_sam.pt": "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"},
    41,
)
EFFICIENTVIT = "hf://mit-han-lab/efficientvit-sam", "Apache-2.0 (EfficientViT-SAM, MIT Han Lab)"
EFFICIENTVIT_L0 = Source(*EFFICIENTVIT, {"efficientvit_sam_l0.pt": ""}, 139)
EFFICIENTVIT_XL1 = Source(*EFFICIENTVIT, {"efficientvit_sam_xl1.pt": ""}, 814)
SAM2_LICENCE = "Apache-2.0 (SAM 2.1, Meta)"
SAM2_TINY = Source(
    "hf://facebook/sam2.1-hiera-tiny", SAM2_LICENCE, {"sam2.1_hiera_tiny.pt": ""}, 156
)
SAM2_LARGE = Source(
    "hf://facebook/sam2.1-hiera-large", SAM2_LICENCE, {"sam2.1_hiera_large.pt": ""}, 898
)
OPEN_CLIP_FILES = {"open_clip_config.json": "", "open_clip_model.safetensors": ""}
TOKENIZER_FILES = {"tokenizer.json": "", "tokenizer_config.json": ""}
CLIP_B = Source(
    "hf://timm/vit_base_patch32_clip_224.openai@a6f597a30f7b82c51704746581f9a4e41421e878",
    "MIT (CLIP, OpenAI)",
    {
        "open_clip_model.safetensors":
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"
    }, 605,
)  # fmt: skip
CLIP_L = Source(
    "hf://timm/vit_large_patch14_clip_224.openai@18d0535469bb561bf468d76c1d73aa35156c922b",
    "MIT (CLIP, OpenAI)",
    {
        "open_clip_model.safetensors":
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e"
    }, 1711,
)  # fmt: skip
TIPS_B = Source(
    "hf://google/tipsv2-b14",
    "CC-BY-4.0 (TIPSv2's weights, Google; its code is Apache-2.0)",
    dict.fromkeys(("config.json", "model.safetensors", "tokenizer.model"), ""),
    785,
)
SIGLIP_GIANT = Source(
    "hf://timm/ViT-gopt-16-SigLIP2-384",
    "Apache-2.0 (SigLIP 2, Google)",
    OPEN_CLIP_FILES | TOKENIZER_FILES,
    7490,
)
PE_CORE_S = Source(
    "hf://timm/PE-Core-S-16-384",
    "Apache-2.0 (Perception Encoder, Meta)",
    OPEN_CLIP_FILES,
    350,
)
NVIDIA_LICENCE = "NVIDIA Open Model License (C-RADIO; commercial use is allowed)"
RADIO_B = Source(
    "hf://nvidia/C-RADIOv3-B@44653a0482cf460bb4f12595fc3cc3dfecc403d1",
    NVIDIA_LICENCE,
    {"c-radio_v3-b_half.pth.tar": ""},
    210,
)
RADIO_L = Source(
    "hf://nvidia/C-RADIOv3-L@9d0413465e8a91e67bbf2c1ad342815478d1b906",
    NVIDIA_LICENCE,
    {"c-radio-v3_l_half.pth.tar": ""},
    720,
)


@dataclass(frozen=True)
class Published:
    """A published model: a pair, or an encoder for everything that needs the others' heads.

    ``millions`` of parameters and ``gflop`` per new image (two per multiplication) are those of the
    image encoders. ``words``, ``masks`` and ``maps`` are published figures with their sources;
    ``maps`` says first whether patches are aligned with texts. ``open_clip`` is open_clip's name of
    ``clip`` and of its weights, if the files do not describe themselves.
    """

    name: str
    use: str
    sam: Source
    clip: Source
    radio: Source | None
    millions: int
    gflop: int
    words: str
    masks: str
    maps: str
    open_clip: str = ""

    @property
    def sources(self) -> list[Source]:
        """What the checkpoint is made of."""
        return [source for source in (self.radio, self.sam, self.clip) if source]

    @property
    def gigabytes(self) -> float:
        """About the size of the downloads."""
        return round(sum(source.megabytes for source in self.sources) / 1000, 1)

    @property
    def licences(self) -> list[str]:
        """The licence of each source."""
        return list(dict.fromkeys(source.licence for source in self.sources))

    @property
    def not_pinned(self) -> list[str]:
        """The sources whose files are those of the hub's newest commit."""
        addresses = [source.address for source in self.sources]
        return [a for a in addresses if a.startswith("hf://") and "@" not in a]


NOT_PUBLISHED = "not published"
OPEN_CLIP_TABLES = "zero-shot ImageNet {} %, COCO text to image R@1 {} % (open_clip's tables)"
CLIP_MAPS = "not aligned with texts: CLIP's training compared whole pictures alone"
PE_CORE_S_WORDS = "zero-shot ImageNet 72.7 %, COCO text to image R@1 42.6 % (PE-Core's page)"
PE_CORE_MAPS = "not aligned with texts: PE-Core's training compared whole pictures alone"
BOXES = "COCO AP {} with ViTDet's boxes ({}'s page)"
RADIO_MAPS = (
    "the adaptor for words reads every patch, but learnt on whole pictures; ADE20k mIoU {} with a "
    "linear probe (the model's page)"
)
MODELS = {one.name: one for one in (
    Published(
        "mobile", "for CPUs and laptops; MobileSAM's masks, CLIP ViT-B/32's words",
        MOBILE_SAM, CLIP_B, None, 94, 87,
        OPEN_CLIP_TABLES.format(63.3, 30.4), BOXES.format(39.4, "EdgeSAM"),
        CLIP_MAPS, "ViT-B-32-quickgelu/openai",
    ),
    Published(
        "efficientvit-sam-l0+clip-b32",
        "for CPUs and laptops; masks of EfficientViT-SAM L0 from frames of 512 pixels, CLIP "
        "ViT-B/32's words",
        EFFICIENTVIT_L0, CLIP_B, None, 119, 78,
        OPEN_CLIP_TABLES.format(63.3, 30.4), BOXES.format(45.7, "EfficientViT-SAM"),
        CLIP_MAPS, "ViT-B-32-quickgelu/openai",
    ),
    Published(
        "efficientvit-sam-l0+pe-core-s",
        "for CPUs and laptops; masks of EfficientViT-SAM L0, PE-Core-S/16's words from 384 pixels",
        EFFICIENTVIT_L0, PE_CORE_S, None, 55, 101,
        PE_CORE_S_WORDS, BOXES.format(45.7, "EfficientViT-SAM"), PE_CORE_MAPS,
    ),
    Published(
        "laptop",
        "for CPUs and laptops; masks of EfficientViT-SAM L0, TIPSv2-B's words, and maps aligned "
        "with texts",
        EFFICIENTVIT_L0, TIPS_B, None, 117, 280,
        "Flickr text to image R@1 80.0 % (TIPSv2's page); ImageNet: not published",
        BOXES.format(45.7, "EfficientViT-SAM"),
        "aligned with texts; zero-shot ADE20k mIoU 17.4, from windows (TIPSv2's page)",
    ),
    Published(
        "efficientvit-sam-xl1+clip-l14",
        "for a GPU; masks of EfficientViT-SAM XL1, CLIP ViT-L/14's words",
        EFFICIENTVIT_XL1, CLIP_L, None, 503, 806,
        OPEN_CLIP_TABLES.format(75.5, 36.5), BOXES.format(47.8, "EfficientViT-SAM"),
        CLIP_MAPS, "ViT-L-14-quickgelu/openai",
    ),
    Published(
        "sam2.1-tiny+pe-core-s",
        "for a GPU (slow on a CPU); masks of SAM 2.1 tiny, PE-Core-S/16's words from 384 pixels",
        SAM2_TINY, PE_CORE_S, None, 51, 322, PE_CORE_S_WORDS, NOT_PUBLISHED, PE_CORE_MAPS,
    ),
    Published(
        "sam2.1-large+clip-l", "for a GPU; masks of SAM 2.1 large, CLIP ViT-L/14's words",
        SAM2_LARGE, CLIP_L, None, 517, 1983,
        OPEN_CLIP_TABLES.format(75.5, 36.5), NOT_PUBLISHED,
        CLIP_MAPS, "ViT-L-14-quickgelu/openai",
    ),
    Published(
        "sam-b+clip-l", "for a GPU (slow on a CPU); SAM ViT-B's masks, CLIP ViT-L/14's words",
        SAM_B, CLIP_L, None, 394, 1130,
        OPEN_CLIP_TABLES.format(75.5, 36.5), NOT_PUBLISHED,
        CLIP_MAPS, "ViT-L-14-quickgelu/openai",
    ),
    Published(
        "radio-b", "for a GPU; one encoder for masks, words and maps, in many languages",
        SAM_H, SIGLIP_GIANT, RADIO_B, 98, 1520,
        "zero-shot ImageNet 71.3 % (C-RADIOv4-H's page)", NOT_PUBLISHED, RADIO_MAPS.format(49.8),
    ),
    Published(
        "radio-l", "for a large GPU; as radio-b, with a larger encoder",
        SAM_H, SIGLIP_GIANT, RADIO_L, 320, 4820,
        "zero-shot ImageNet 80.0 % (C-RADIOv4-H's page)", NOT_PUBLISHED, RADIO_MAPS.format(51.9),
    ),
)}  # fmt: skip


def show(as_json: bool = False) -> None:
    """Print the published models: their use, size, cost, published figures and licences."""
    if as_json:
        found = [
            asdict(one)
            | {"gigabytes": one.gigabytes, "here": bool(checkpoint.found(name))}
            | {"measured": _measured(name), "revision not pinned": one.not_pinned}
            for name, one in MODELS.items()
        ]
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    for one in MODELS.values():
        print("\n".join(_lines(one)), end="\n\n")
    print("samclip serve --checkpoint NAME makes a checkpoint if none is here, and serves it.")


def _measured(name: str) -> str:
    """Return what a checkpoint costs here; empty if there is none, or nobody has measured it."""
    directory = checkpoint.found(name)
    try:
        return plain(measured.known(directory)) if directory else ""
    except CheckpointError:  # it is damaged
        return ""


def _lines(one: Published) -> list[str]:
    cost = _measured(one.name)
    return [
        f"{one.name}{' (here)' if checkpoint.found(one.name) else ''}: {one.use}",
        f"  {one.millions} M parameters, {one.gflop:,} GFLOP per new image, "
        f"about {one.gigabytes} GB to download",
        *([f"  {cost}"] if cost else []),
        f"  words: {one.words}",
        f"  masks: {one.masks}",
        f"  maps: {one.maps}",
        *(f"  {licence}" for licence in one.licences),
    ]
