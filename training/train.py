"""Merge teachers into a checkpoint: ``samclip train``, or a Ray job.

    ray job submit -- python -m training.train --recipe edge

    photographs → teachers → I head probing → II joint distillation → III adaptation → checkpoint

A stopped run resumes from its folder and skips completed stages.
"""

import argparse
import copy
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor, nn

from samclip_core.config import SamClipConfig
from samclip_core.engine.memory import keep_memory
from samclip_core.io import checkpoint
from samclip_core.nn.edge import EdgeClipHead
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from samclip_core.nn.text_encoder import TextEncoder, load_text_encoder
from training import workers
from training.data.annotations import class_names, imagenet_names
from training.data.drawn import DRAWN_SETS, write_drawn_sets
from training.data.folder import VARIABLE, photograph_sets
from training.data.sources import open_source
from training.data.targets import StoredTargets, identity
from training.distillation import stages
from training.distillation.parts import ClipTeachers
from training.distillation.teachers import (
    ClipTeacher,
    OpenClipTeacher,
    class_embeddings,
    keep_start,
    official_sam,
    start_clip_head,
    student_from_sam,
)
from training.evaluation.semantic import readable
from training.recipes import CONFIGS, RECIPES, Run, override
from training.results import report

STEP_BYTES = 2**31 - 1  # freed memory that the process keeps for the next step
RETRIES = 3  # restarts after a lost worker; each resumes from the last saved state


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; see ``--help``."""
    options = parser()
    arguments = options.parse_args(argv)
    try:
        recipe = override(RECIPES[arguments.recipe](), arguments.set)
    except ValueError as error:
        options.error(str(error))
    if recipe.kind == "vit-b" and not (arguments.sam and arguments.clip):
        options.error(f"recipe {recipe.name} merges official teachers: give --sam and --clip")
    out = (arguments.out or Path("runs") / recipe.name).resolve()
    drawn = recipe.name == "debug" and not (arguments.data or os.environ.get(VARIABLE))
    if drawn:
        recipe = replace(recipe, **DRAWN_SETS)
        arguments.data = str(out / "photographs")
    arguments.data = photograph_sets(options, "--data", arguments.data)
    checkpoint.check_target(out / "checkpoint")
    (out / "states").mkdir(parents=True, exist_ok=True)
    if drawn:
        write_drawn_sets(Path(arguments.data))
    run = Run(
        recipe=recipe,
        config=CONFIGS[recipe.kind],
        folder=out / "states",
        **{key: getattr(arguments, key) for key in _OF_RUN},
    )
    TorchTrainer(
        train_worker,
        train_loop_config={"run": run},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(
            name=out.name,
            storage_path=str(out / "ray"),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
    ).fit()
    print((out / "report.md").read_text())
    return 0


_OF_RUN = ("data", "text_tower", "start", "sam", "clip", "targets", "readers", "threads")


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    options = argparse.ArgumentParser(
        prog="samclip train", description="Merge a CLIP and a SAM teacher into one checkpoint."
    )
    options.add_argument("--recipe", choices=RECIPES, default="edge")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a field of the recipe, as in joint.steps=10; may be repeated",
    )
    options.add_argument(
        "--data",
        help="folder or URL of the photograph sets (SAMCLIP_DATA); debug draws its own without it",
    )
    options.add_argument(
        "--out",
        type=Path,
        help="folder of the states to resume from and of the result (runs/RECIPE)",
    )
    options.add_argument(
        "--start", default="", help="edge: checkpoint whose SAM initialises the SAM teacher"
    )
    options.add_argument(
        "--text-tower", default="edge", help="edge: checkpoint whose frozen text tower to keep"
    )
    options.add_argument("--sam", default="", metavar="FILE", help="vit-b: official SAM weights")
    options.add_argument(
        "--clip", default="", metavar="MODEL:FILE", help="vit-b: an open_clip model and its weights"
    )
    options.add_argument(
        "--targets",
        default="",
        help="folder of stored CLIP-teacher outputs (training.distillation.embeddings)",
    )
    options.add_argument(
        "--workers", type=int, default=0, help="data-parallel workers; 0: train in this process"
    )
    options.add_argument("--gpu", action="store_true", help="use one GPU per worker")
    options.add_argument(
        "--readers", type=int, default=0, help="processes per worker that decode ahead"
    )
    options.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads per worker"
    )
    return options


def train_worker(settings: dict[str, Run]) -> None:
    """Run the merge on one worker; worker 0 writes the checkpoint and the report."""
    run = replace(settings["run"], device=get_device())
    torch.set_num_threads(run.threads)
    keep_memory(STEP_BYTES)
    torch.manual_seed(run.recipe.seed)
    net, text_encoder, config, teachers = MERGES[run.recipe.kind](run)
    if workers.rank() == 0:
        target = run.folder.parent / "checkpoint"
        net.cpu().eval().requires_grad_(False)
        checkpoint.save(target, net, text_encoder, config, lineage(run, teachers))
        report.write(run, target)


class Merged(NamedTuple):
    """The result of a merge: the contents of a checkpoint and the origin of its teachers."""

    net: SamClipNet
    text_encoder: TextEncoder
    config: SamClipConfig
    teachers: dict[str, str]


def merge_edge(run: Run) -> Merged:
    """Run the edge merge: both teachers start from ImageNet classifiers; SAM's is trained first.

    Head_CLIP's concepts are ImageNet's classes and those of the named sets.
    """
    recipe = run.recipe
    text_encoder = load_text_encoder(checkpoint.resolve(run.text_tower))
    class_text_TD = class_embeddings(text_encoder, imagenet_names(Path(run.data)))
    names_LD = name_embeddings(run, text_encoder)
    concepts_TD = torch.cat([class_text_TD, names_LD])
    config = _with_concepts(run.config, len(concepts_TD))

    sam_teacher = build(config, SAM_PARTS)
    assert recipe.sam_teacher is not None
    stages.train_sam_teacher(run, sam_teacher, recipe.sam_teacher)
    net = build(config)
    for part in SAM_PARTS:
        net.get_submodule(part).load_state_dict(sam_teacher.get_submodule(part).state_dict())
    assert isinstance(net.clip_head, EdgeClipHead)
    start_clip_head(net.clip_head, concepts_TD)
    start = copy.deepcopy(net.clip_head)
    clip_teacher = ClipTeacher(class_text_TD, recipe.clip_teacher).to(run.device)
    teachers = ClipTeachers(clip_teacher, names_LD.to(run.device), kept(run, clip_teacher))
    distil(run, net, teachers, sam_teacher)
    keep_start(net.clip_head, start, recipe.kept_start)
    origins = {
        "clip": f"EfficientNet-Lite{recipe.clip_teacher}, ImageNet-1k, class names embedded",
        "sam": "EfficientNet-Lite0, ImageNet-1k, then outlined regions",
        "names": ", ".join(recipe.named_sets),
        "text": run.text_tower,
        "start": checkpoint.digest(checkpoint.resolve(run.start)) if run.start else "",
    }
    return Merged(
        net, text_encoder, config, {key: origin for key, origin in origins.items() if origin}
    )


def kept(run: Run, clip_teacher: nn.Module) -> StoredTargets | None:
    """Return the stored outputs of the CLIP teacher, or None if the run has no targets.

    Raises ValueError or FileNotFoundError if the targets do not fit this run.
    """
    if not run.targets:
        return None
    sources = [open_source(f"{run.data}/{name}") for name in run.recipe.photo_sets]
    stored = StoredTargets.open(Path(run.targets), identity(clip_teacher), sources)
    if run.recipe.photo_sides != (stored.plan.size,):
        raise ValueError(
            f"{run.targets} holds views of {stored.plan.size} pixels, the recipe has photo_sides "
            f"{run.recipe.photo_sides}: compute other targets, or use "
            f"--set photo_sides=[{stored.plan.size}]"
        )
    return stored


def name_embeddings(run: Run, text_encoder: TextEncoder) -> Tensor:
    """Return ``names_LD``, the class embeddings of the named sets, in ``Named``'s class order."""
    sets = run.recipe.named_sets
    names = [readable(name) for s in sets for name in class_names(Path(run.data), s).values()]
    return class_embeddings(text_encoder, names) if names else torch.empty(0, run.config.text_dim)


def _with_concepts(config: SamClipConfig, concepts: int) -> SamClipConfig:
    assert config.clip_head is not None
    return replace(config, clip_head=replace(config.clip_head, hidden=concepts))


def merge_vit_b(run: Run) -> Merged:
    """Run the paper's merge: the student is SAM with a new Head_CLIP, the text tower is CLIP's."""
    sam_teacher = official_sam(Path(run.sam)).to(run.device)
    model, _, file = run.clip.partition(":")
    clip_teacher = OpenClipTeacher(model, Path(file)).to(run.device)
    text_encoder = clip_teacher.text_encoder()
    names_LD = name_embeddings(run, text_encoder)
    net = student_from_sam(sam_teacher, run.config, run.recipe.checkpointing)
    teachers = ClipTeachers(clip_teacher, names_LD.to(run.device), kept(run, clip_teacher))
    distil(run, net, teachers, sam_teacher)
    origins = {
        "clip": f"{model} {checkpoint.sha256(Path(file))}",
        "sam": checkpoint.sha256(Path(run.sam)),
    }
    return Merged(net, text_encoder, run.config, origins)


MERGES = {"edge": merge_edge, "vit-b": merge_vit_b}


def distil(
    run: Run, net: SamClipNet, clip_teachers: ClipTeachers, sam_teacher: SamClipNet
) -> None:
    """Run the paper's three stages, or those of them that the recipe sets."""
    recipe = run.recipe
    if recipe.head_probing:
        stages.head_probing(run, net, clip_teachers, recipe.head_probing)
    if recipe.joint:
        stages.joint_distillation(run, net, clip_teachers, sam_teacher, recipe.joint)
    if recipe.adaptation:
        stages.resolution_adaptation(run, net, clip_teachers, recipe.adaptation)


def lineage(run: Run, teachers: dict[str, str]) -> dict[str, object]:
    """Return the origin of the weights: everything needed to repeat the run."""
    recipe = run.recipe
    sets = sorted({*recipe.photo_sets, *dict(recipe.region_sets), *recipe.named_sets})
    return {
        "teachers": teachers,
        "data": {name: open_source(f"{run.data}/{name}").digest() for name in sets},
        "recipe": asdict(recipe),
        "revision": _revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _revision() -> str:
    """Return the commit of this code, or ``unknown`` outside a git checkout."""
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
