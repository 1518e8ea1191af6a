"""RADIO: one ViT, distilled from several teachers, and an adaptor for each."""

from dataclasses import dataclass

from samclip_core.families.clip import SIGLIP_GIANT
from samclip_core.families.family import Family, Sizes
from samclip_core.families.published import NOT_PUBLISHED, Published, Source
from samclip_core.families.sam import SAM_H


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """An adaptor: width of its input's layer, its residual blocks, and its output."""

    hidden: int
    blocks: int
    output: int


@dataclass(frozen=True, kw_only=True)
class RadioConfig(Sizes):
    """The ViT and those of its adaptors that are used: for words, and for SAM's masks if any.

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

    @property
    def masks(self) -> bool:
        return self.sam is not None


_LICENCE = "NVIDIA Open Model License (C-RADIO; commercial use is allowed)"
_WORDS = "zero-shot ImageNet {} % (C-RADIOv4-H's page)"
_MAPS = (
    "the adaptor for words reads every patch, but learnt on whole pictures; ADE20k mIoU {} with a "
    "linear probe (the model's page)"
)
_B = Source(
    "hf://nvidia/C-RADIOv3-B@44653a0482cf460bb4f12595fc3cc3dfecc403d1",
    *(_LICENCE, {"c-radio_v3-b_half.pth.tar": ""}, 210),
)
_L = Source(
    "hf://nvidia/C-RADIOv3-L@9d0413465e8a91e67bbf2c1ad342815478d1b906",
    *(_LICENCE, {"c-radio-v3_l_half.pth.tar": ""}, 720),
)
# In int8, an error in the neck's first layer would grow to the size of a feature in the norm after
# it, because padding is zero.
RADIO = Family(
    name="radio",
    title="C-RADIO",
    backbones={"radio": None},
    kind="radio",
    key="radio",
    sizes=RadioConfig,
    keep_float=r"encoder\.blocks\.0\.|\.neck\.0\.weight",
    models=(
        Published(
            "radio-b", "for a GPU; one encoder for masks, words and maps, in many languages",
            SAM_H, SIGLIP_GIANT, _B, 98, 1520,
            _WORDS.format(71.3), NOT_PUBLISHED, _MAPS.format(49.8),
        ),
        Published(
            "radio-l", "for a large GPU; as radio-b, with a larger encoder",
            SAM_H, SIGLIP_GIANT, _L, 320, 4820,
            _WORDS.format(80.0), NOT_PUBLISHED, _MAPS.format(51.9),
        ),
    ),
)  # fmt: skip
