"""``samclip train`` and ``ray job submit -- python -m training.train``: teachers to checkpoint.

    shards → edge teachers → stage I head probing → stage II joint distillation → checkpoint

A run that was stopped goes on from its folder: a stage that is done is not done again.
"""

import argparse
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from samclip_core import checkpoint
from samclip_core.config import EDGE
from samclip_core.edge import EdgeClipHead, EdgeEncoder
from samclip_core.network import SamClipNet, build
from samclip_core.text import TextEncoder, load_text_encoder
from training.recipes import RECIPES, Run
from training.stages import SAM_PARTS, head_probing, joint_distillation, train_sam_teacher
from training.teachers import ClipTeacher, blend_trunk, class_embeddings, start_clip_head
from training.text_tower import imagenet_names


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; see ``--help``."""
    arguments = parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    run = Run(
        recipe=RECIPES[arguments.recipe](),
        data=arguments.data,
        folder=arguments.out / "states",
        start=arguments.start,
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    text_encoder = load_text_encoder(checkpoint.resolve(arguments.text_tower))
    net = merge(run, text_encoder)
    digest = checkpoint.save(
        arguments.out / "checkpoint", net, text_encoder, EDGE, lineage(run, arguments.text_tower)
    )
    print(f"{arguments.out / 'checkpoint'}: digest {digest}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: which recipe, on what, to where."""
    options = argparse.ArgumentParser(
        prog="samclip train", description="Merge a CLIP and a SAM teacher into one checkpoint."
    )
    options.add_argument("--recipe", choices=RECIPES, default="edge")
    options.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder of the photograph sets"
    )
    options.add_argument(
        "--out", type=Path, default=Path("runs/edge"), help="states to resume from, and the result"
    )
    options.add_argument(
        "--start", default="", help="checkpoint whose SAM the SAM teacher goes on from"
    )
    options.add_argument(
        "--text-tower", default="edge", help="checkpoint whose frozen text tower to keep"
    )
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    return options


def merge(run: Run, text_encoder: TextEncoder) -> SamClipNet:
    """All stages of a recipe; gives the merged network."""
    torch.manual_seed(run.recipe.seed)
    class_text_TD = class_embeddings(text_encoder, imagenet_names(run.data))
    clip_teacher = ClipTeacher(class_text_TD, run.recipe.clip_teacher)

    sam_teacher = build(EDGE, SAM_PARTS)
    train_sam_teacher(run, sam_teacher)

    net = build(EDGE)
    for part in SAM_PARTS:
        net.get_submodule(part).load_state_dict(sam_teacher.get_submodule(part).state_dict())
    assert isinstance(net.image_encoder, EdgeEncoder)
    assert isinstance(net.clip_head, EdgeClipHead)
    blend_trunk(net.image_encoder, run.recipe.imagenet_share)
    start_clip_head(net.clip_head, class_text_TD)
    head_probing(run, net, clip_teacher)
    joint_distillation(run, net, clip_teacher, sam_teacher)
    return net.eval().requires_grad_(False)


def lineage(run: Run, text_tower: str) -> dict[str, object]:
    """Where the weights come from: everything that a rerun would need to know."""
    recipe = run.recipe
    return {
        "teachers": {
            "clip": f"EfficientNet-Lite{recipe.clip_teacher}, ImageNet-1k, class names embedded",
            "sam": "EfficientNet-Lite0, ImageNet-1k, then outlined regions",
            "start": run.start or "ImageNet",
            "text": text_tower,
        },
        "data": {
            source: {
                file.name: checkpoint.sha256(file)
                for file in sorted((run.data / source).glob("train-*.tar"))
            }
            for source in sorted({*recipe.photo_sets, *dict(recipe.region_sets)})
        },
        "recipe": asdict(recipe),
        "revision": _revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _revision() -> str:
    """The commit of this code, where it runs from a checkout and there is a git to ask."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
