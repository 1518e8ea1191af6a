"""``samclip convert``: make a ``pair`` or ``radio`` checkpoint from published weights."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.commands import card
from samclip_core.commands.convert_radio import TEXT_TOWERS, convert_radio
from samclip_core.config import SamClipConfig, TaskSizes
from samclip_core.errors import InvalidRequest, SamClipError, plain
from samclip_core.families import TOWERS
from samclip_core.families.published import Source
from samclip_core.io import sources
from samclip_core.io.official import check
from samclip_core.nn.network import SAM_PARTS, build
from samclip_core.nn.official_clip import FORMS, OfficialClip, load_official_clip
from samclip_core.nn.official_sam import READ, read_sam, sam_config, sam_file

ANY_SIDE = [family.title for family in READ if family.any_side]
RADIO = 512, 1024
"""Sides of a radio's frame, for words and maps, and for masks."""
CARD = """# {name}

A SAM-CLIP checkpoint of kind `pair`: masks of SAM's {backbone} beside words of {model}, made by
`samclip convert`. Nothing was trained: each gives the results of the original. The weights keep
their original licences.

- masks: `{sam}`
- words: `{clip}`
"""

EXAMPLES = """OpenAI's weights were trained with QuickGELU, which no file says: use the
architecture whose name ends in -quickgelu, or name the tag, which is then
checked.

examples:
  samclip convert --sam sam_vit_b_01ec64.pth \\
      --clip ViT-L-14:weights.safetensors --out pair/
  samclip convert --sam mobile_sam.pt \\
      --clip local-dir:clip-vit-base-patch32/ --out mobile/
  samclip convert --radio c-radio_v3-b_half.pth.tar --sam sam_vit_h_4b8939.pth \\
      --clip local-dir:ViT-gopt-16-SigLIP2-384/ --out radio-b/
  samclip convert --radio C-RADIOv4-H/ --sam mobile_sam.pt \\
      --clip local-dir:ViT-gopt-16-SigLIP2-384/ --out radio-v4/"""


def convert(
    sam: Path,
    clip: str,
    out: Path,
    name: str = "pair",
    *,
    sides: tuple[int, int] | None = None,
    published: Sequence[Source] = (),
) -> str:
    """Write a ``pair`` checkpoint of two official models to ``out``; return its digest.

    ``sam`` is the file of a SAM, or its folder from the hub, ``clip`` a model in one of the forms
    of ``official_clip``. ``sides`` are those of the frame for words and maps, and for masks; by
    default both are SAM's. Lineage and card name the ``published`` sources of the files and their
    licences. Raises CheckpointError if a file cannot be read, or if its keys or shapes do not match
    the architecture, and InvalidRequest for a side that SAM cannot read.
    """
    sam = sam_file(sam)
    sam_state = read_sam(sam)
    config = replace(sam_config(sam_state), kind="pair", name=name, clip_head=None)
    framed = _framed(config, sides or (config.image_size,) * 2)
    official = _load_words(clip, sides)
    config = official.describe_in(framed)
    check(partial(build, config, SAM_PARTS), sam_state, sam.name, f"SAM's {config.backbone}")
    net, text_encoder = build(config).eval(), official.text_encoder()
    net.load_state_dict(sam_state, strict=False)
    official.fill_tower(net.clip_head.get_submodule("visual"))

    model, weights = official.text.model, official.weights
    made_of = {
        "sam": {"variant": config.backbone, **card.file_of(sam)},
        "clip": {"model": model, **card.file_of(weights)},
    }
    if official.text_weights:
        made_of["text"] = card.file_of(official.text_weights)
    text = CARD.format(
        name=name, backbone=config.backbone, model=model, sam=sam.name, clip=weights.name
    )
    return card.save(out, net, text_encoder, config, made_of, published, text)


def _load_words(clip: str, sides: tuple[int, int] | None) -> OfficialClip:
    """Load the model of ``--clip``, of the family whose files are in the folder, or open_clip's."""
    folder = Path(clip.partition(":")[2])
    if clip.startswith("local-dir:"):
        for files in (one.module("files") for one in TOWERS.values() if one.reads_folders):
            if files.is_here(folder):
                like: OfficialClip = files.load(folder, sides and sides[0])
                return like
    return load_official_clip(clip)


def _framed(config: SamClipConfig, sides: tuple[int, int]) -> SamClipConfig:
    """Set the sides of the frame for words and maps, and for masks."""
    words, masks = sides
    if masks != config.image_size and not config.family.any_side:
        raise InvalidRequest(
            f"the file has a SAM for frames of {config.image_size} pixels: give --sides {words} "
            f"{config.image_size}, or {' or '.join(ANY_SIDE)}, which reads any frame"
        )
    own = None if words == masks else TaskSizes(classify=words, semantic=words, retrieval=words)
    config = replace(config, image_size=masks, task_sizes=own)
    for side in config.sizes:
        config.check_size(side)
    return config


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(argv)
    if not (args.sam or args.radio):
        options.error("--sam is missing: only a checkpoint of --radio can be without masks")
    if ":" not in args.clip:
        options.error(f"--clip {args.clip}: expected {FORMS}, or hf://OWNER/NAME")
    try:
        if not args.sam:
            print("without --sam, the checkpoint makes no masks", file=sys.stderr)
        digest = _convert(args, args.name or args.out.name)
    except (SamClipError, OSError) as error:
        print(f"samclip convert: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {digest}\nServe it: samclip serve --checkpoint {args.out}")
    return 0


def _convert(args: argparse.Namespace, name: str) -> str:
    """Convert files and pages of the hub, and report the licences of the latter."""
    given = [one for one in (args.radio, args.sam, args.clip) if one and one.startswith("hf://")]
    pages = {one: sources.page(one, one == args.radio) for one in dict.fromkeys(given)}
    for one in pages.values():
        print(plain(f"{one.address}: licence {one.licence}"), file=sys.stderr)

    def path(given: str) -> Path:
        return pages[given].folder if given in pages else Path(given)

    sam, published = args.sam and path(args.sam), [*pages.values()]
    clip = f"local-dir:{path(args.clip)}" if args.clip in pages else args.clip
    if not args.radio:
        return convert(sam, clip, args.out, name, sides=args.sides, published=published)
    radio = path(args.radio)
    if args.radio in pages:
        radio = next(radio.glob("*.pth.tar"), radio)
    return convert_radio(
        *(radio, sam, clip, args.out, name),
        words=args.words,
        sides=args.sides or RADIO,
        published=published,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip convert",
        description="""Make a checkpoint of kind `pair` from the published weights of a SAM and
of a CLIP, SigLIP or TIPSv2, or, with --radio, one of kind `radio` from a
C-RADIO, a text tower and SAM's ViT-H. A C-RADIOv4 has no adaptor for SAM: give
mobile_sam.pt, whose encoder then serves the masks, or leave out --sam and have
none.""",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.add_argument(
        "--sam",
        metavar="FILE",
        help=f"SAM's .pth, {', '.join(one.files[0] for one in READ[:-1])}, a folder with SAM in "
        "transformers' layout, or its page hf://OWNER/NAME on the hub; with --radio, leave it out "
        "for a checkpoint without masks",
    )
    made.add_argument(
        "--clip",
        required=True,
        metavar="MODEL:FILE",
        help="open_clip architecture and its weights, such as ViT-L-14:weights.safetensors; or "
        "MODEL/TAG:FILE with open_clip's tag of the weights, or local-dir:FOLDER with the files of "
        "a model's page, in open_clip's or transformers' layout, or that page as hf://OWNER/NAME; "
        "a TIPSv2 also from its authors' two .npz files and tokenizer.model in FOLDER",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the new checkpoint; one that is there is replaced",
    )
    made.add_argument(
        "--radio",
        metavar="DIR|FILE",
        help="RADIO's config.json and model.safetensors in a folder, its .pth.tar for torch hub, "
        "or its page hf://OWNER/NAME",
    )
    made.add_argument(
        "--words",
        choices=TEXT_TOWERS,
        default="siglip2-g",
        help="with --radio: adaptor for words, whose teacher's text tower --clip gives "
        "(default: %(default)s)",
    )
    made.add_argument(
        "--sides",
        type=int,
        nargs=2,
        metavar=("WORDS", "MASKS"),
        help="sides of the frame in pixels, for words and maps, and for masks (default: with "
        "--radio 512 1024, else SAM's for both); without --sam, WORDS alone counts; a TIPSv2 reads "
        "WORDS, else 448",
    )
    made.add_argument("--name", default="", help="name of the checkpoint (default: that of DIR)")
    return made
