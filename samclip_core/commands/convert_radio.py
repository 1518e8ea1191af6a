"""Make a ``radio`` checkpoint from RADIO's, a language teacher's and a SAM's official weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from samclip_core.commands import card
from samclip_core.config import VIT_B, SamClipConfig, TaskSizes
from samclip_core.errors import CheckpointError
from samclip_core.families.family import Family
from samclip_core.families.published import Source
from samclip_core.families.radio import RADIO
from samclip_core.families.radio.files import read_radio
from samclip_core.io.official import check
from samclip_core.nn.network import build
from samclip_core.nn.official_clip import load_official_clip
from samclip_core.nn.official_sam import family_of, read_sam, sam_file

Words = Literal["siglip2-g", "clip"]
TEXT_TOWERS: dict[Words, str] = {
    "siglip2-g": "SigLIP 2 giant (ViT-gopt-16-SigLIP2-384, Apache-2.0)",
    "clip": "DFN's ViT-H-14-378-quickgelu (Apple's licence)",
}
"""The text tower that belongs to each adaptor for words, with its licence."""
SAM_FILE = "sam_vit_h_4b8939.pth"
_NECK = "image_encoder.neck.0.weight"

CARD = """# {name}

A SAM-CLIP checkpoint of kind `radio`, made by `samclip convert`: an encoder whose adaptors give
the features of its teachers. Nothing was trained. The weights keep their licences:

- RADIO, `{radio}`: the C-RADIO family has the NVIDIA Open Model License, which allows commercial
  use; RADIO without C- does not allow it
- {sam}
- the text tower, `{clip}`: of the adaptor's teacher, {text}
"""


def convert_radio(  # noqa: PLR0913 - the files, and the command's options
    radio: Path,
    sam: Path | None,
    clip: str,
    out: Path,
    name: str = "radio",
    *,
    words: Words = "siglip2-g",
    sides: tuple[int, int] = (512, 1024),
    published: Sequence[Source] = (),
) -> str:
    """Write a ``radio`` checkpoint to ``out``; return its digest.

    ``radio`` and ``sam`` are official files, ``clip`` the teacher of the adaptor ``words`` in one
    of the forms of ``official_clip``, of which only the text tower is kept. ``sides`` are those of
    the frame for words and maps, and for masks. A MobileSAM brings its own encoder; without
    ``sam``, there are none. ``published`` is as in ``convert``. Raises CheckpointError if a file
    cannot be read, or if they do not fit each other, and InvalidRequest for a side that the encoder
    cannot read.
    """
    sam = sam_file(sam) if sam else None
    file, sam_state = read_radio(radio), _sam_parts(sam) if sam else {}
    beside = _with_encoder(sam_state)
    described = file.config(words, masks=bool(sam) and not beside)
    official = load_official_clip(clip, images=False)
    config = replace(
        _with_sam(official.describe_in(VIT_B), sam_state, sides),
        kind="radio",
        name=name,
        clip_head=None,
        logit_scale=VIT_B.logit_scale,  # as RADIO is evaluated, not the teacher's
        task_sizes=TaskSizes(classify=sides[0], semantic=sides[0], retrieval=sides[0]),
        networks={RADIO.key: described},
    )
    _check(config, words, sam_state)
    ours = file.parts(words, masks=described.sam is not None)
    if beside:  # then RADIO is a part of the CLIP head
        ours = {key.replace("image_encoder.", "clip_head.trunk."): ours[key] for key in ours}
    state = {**ours, **sam_state}
    check(
        partial(build, config),
        state,
        " with ".join(path.name for path in (file.weights, sam) if path),
        "a C-RADIO with adaptors of version v2" + (" and SAM's parts" if sam else ""),
    )
    net = build(config).eval()
    net.load_state_dict(state)
    made_of = {
        "radio": {"model": file.args["model"], "words": words, **card.file_of(file.weights)},
        **({"sam": card.file_of(sam)} if sam else {}),
        "clip": {"model": official.text.model, **card.file_of(official.weights)},
    }
    part = beside.title if beside else "SAM's neck, prompt encoder and mask decoder"
    text = CARD.format(
        name=name,
        radio=file.weights.name,
        sam=f"{part}, `{sam.name}`: Apache-2.0" if sam else "no mask decoder: no masks",
        clip=official.text.model,
        text=TEXT_TOWERS[words],
    )
    return card.save(out, net, official.text_encoder(), config, made_of, published, text)


def _with_sam(
    config: SamClipConfig, sam_state: Mapping[str, Tensor], sides: tuple[int, int]
) -> SamClipConfig:
    """Return the config with what makes masks; without tensors of a SAM, nothing does."""
    if not sam_state:
        return replace(config, backbone=RADIO.name, image_size=sides[0], embed_dim=0, decoder=None)
    (backbone,) = (_with_encoder(sam_state) or RADIO).backbones
    width = len(sam_state[_NECK])
    return replace(config, backbone=backbone, image_size=sides[1], embed_dim=width)


def _with_encoder(sam_state: Mapping[str, Tensor]) -> Family | None:
    """Return the family of a SAM that makes masks with its own encoder, of frames of any side."""
    family = family_of(sam_state)
    return family if family.any_side else None


def _sam_parts(sam: Path) -> dict[str, Tensor]:
    """Read the parts of SAM that follow its blocks, or all if its encoder is used."""
    state = read_sam(sam)
    if not _with_encoder(state):
        kept = ("image_encoder.neck.", "prompt_encoder.", "mask_decoder.")
        state = {key: value for key, value in state.items() if key.startswith(kept)}
    if _NECK not in state:
        raise CheckpointError(f"{sam} has no image_encoder.neck: expected SAM's {SAM_FILE}")
    return state


def _check(config: SamClipConfig, words: Words, sam_state: Mapping[str, Tensor]) -> None:
    """Raise an error, which says what to use instead, unless the files fit each other."""
    for side in config.sizes:
        config.check_size(side)
    radio = config.networks[RADIO.key]
    gives = radio.words.output
    if config.text_dim != gives:
        raise CheckpointError(
            f"the text tower of {config.text.model} has width {config.text_dim}, and RADIO's "
            f"adaptor {words} gives {gives}: use the tower of the adaptor's teacher, "
            f"{TEXT_TOWERS[words]}, or choose another adaptor with --words"
        )
    if config.family is not RADIO and config.image_size % config.size_of("semantic"):
        raise CheckpointError(
            f"beside {config.family.title}, RADIO reads frames for masks smaller: "
            f"{config.image_size} pixels are no multiple of {config.size_of('semantic')}: choose "
            "others with --sides"
        )
    adaptor = radio.sam
    if adaptor and (width := sam_state[_NECK].shape[1]) != adaptor.output:
        raise CheckpointError(
            f"the file of --sam is a SAM of width {width}, and RADIO's adaptor gives "
            f"{adaptor.output}: use SAM's ViT-H, {SAM_FILE}, which has 1280"
        )
