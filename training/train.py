"""Merge teachers into a checkpoint: ``samclip train``, or a Ray job.

    ray job submit --working-dir . -- python -m training.train --recipe edge

    photographs → teachers → I head probing → II joint distillation → III adaptation → checkpoint

A stopped run resumes from its folder and skips completed stages.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.engine.processor import keep_memory
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint, private_ray
from samclip_core.io.folder import Folder
from samclip_core.nn.official_clip import FORMS
from training import workers
from training.data.drawn import DRAWN_SETS, write_drawn_sets
from training.data.sources import open_source
from training.distillation.while_training import check_stops
from training.merges import MERGES, Merged, licences
from training.options import (
    LOCATIONS,
    RECIPE_FORMS,
    VARIABLE,
    locate,
    override,
    photograph_sets,
    recipe_of,
)
from training.recipes import CONFIGS, Recipe, Run
from training.results import card

STEP_BYTES = 2**31 - 1  # freed memory that the process keeps for the next step
RETRIES = 3  # restarts after lost workers; each resumes from the last saved state
EXPLAINED = (SamClipError, FloatingPointError, ImportError, OSError, ValueError)
"""Errors whose message says enough: the command ends with it, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe; see ``--help``."""
    options = parser()
    arguments = options.parse_args(argv)
    given = arguments.data or os.environ.get(VARIABLE)
    drawn = arguments.recipe.name == "debug" and not given
    recipe = _recipe(options, arguments, DRAWN_SETS if drawn else {})
    try:
        out = Folder(arguments.out or Path("runs") / recipe.name)
    except (ValueError, ImportError) as error:
        options.error(f"--out {arguments.out}: {error}")
    if drawn:
        arguments.data = str((out.disk or Path("runs/debug").resolve()) / "photographs")
    arguments.data = photograph_sets(options, "--data", arguments.data)
    try:
        if out.disk is not None:
            checkpoint.check_target(out.disk / "checkpoint")
        out.check()
        if drawn:
            write_drawn_sets(Path(arguments.data))
        _fit(_run(recipe, out, arguments), out, arguments.workers, arguments.gpu)
    except EXPLAINED as error:
        print(f"samclip train: {error}", file=sys.stderr)
        return 1
    print(f"checkpoint: {out.url}/checkpoint")
    return 0


def _run(recipe: Recipe, out: Folder, arguments: argparse.Namespace) -> Run:
    """Return the run, whose files are checked before any worker starts."""
    places = {name: getattr(arguments, name) for name in LOCATIONS}
    check_stops(recipe, arguments.data)
    return Run(
        recipe=recipe,
        config=CONFIGS[recipe.kind],
        folder=(out / "states").url,
        readers=arguments.readers,
        threads=arguments.threads,
        **locate(places, recipe.kind),
    )


def _recipe(
    options: argparse.ArgumentParser, arguments: argparse.Namespace, sets: dict[str, Any]
) -> Recipe:
    """Return the recipe on ``sets`` with the user's changes; check the teachers' options."""
    try:
        recipe = override(replace(arguments.recipe, **sets), arguments.set)
    except ValueError as error:
        options.error(str(error))
    if recipe.kind == "vit-b" and not (arguments.sam and arguments.clip):
        options.error(f"recipe {recipe.name} merges two models: give --mask-teacher and --clip")
    return recipe


def _fit(run: Run, out: Folder, count: int, gpu: bool) -> None:
    """Train on the workers; raise a final error of theirs as if it were this process's own."""
    system = None if out.disk is not None else PyFileSystem(FSSpecHandler(out.system))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": run},
        scaling_config=ScalingConfig(num_workers=count, use_gpu=gpu),
        run_config=RunConfig(
            name=out.path.rpartition("/")[2],
            storage_path=f"{out.path}/ray",
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[workers.EndOnFinalErrors()],
        ),
    )
    try:
        with private_ray.connected(ray) if count else nullcontext():  # 0: it trains in this process
            trainer.fit()
    except ControllerError as error:
        raise error.controller_failure from error


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="samclip train",
        description="Merge a CLIP and a SAM teacher into one checkpoint.",
        epilog="examples:\n"
        "  samclip train --recipe debug\n"
        "  samclip train --recipe edge --data photos/ --set joint.steps=2000 --workers 2",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    add = options.add_argument
    add("--recipe", type=recipe_of, default="edge", metavar="NAME", help=RECIPE_FORMS)
    changes = "change a field of the recipe, as in joint.steps=10; may be repeated"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=changes)
    data = "folder or URL of the photograph sets (SAMCLIP_DATA); debug draws its own without it"
    add("--data", help=data)
    out = "folder or URL of the states to resume from and of the result, the same one for all "
    add("--out", help=f"{out}workers (runs/RECIPE)")
    _add_teachers(options)
    add("--workers", type=int, default=0, help="data-parallel workers; 0: train in this process")
    add("--gpu", action="store_true", help="use one GPU per worker")
    ahead = "processes per worker that decode ahead; default: with --gpu the worker's cores less "
    add("--readers", type=int, help=f"{ahead}one, at most {workers.MOST_READERS}, else 0")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads per worker")
    return options


def _add_teachers(options: argparse.ArgumentParser) -> None:
    """Add the options that name models: where the student starts, and its teachers."""
    add = options.add_argument
    add(
        "--start",
        default="",
        help="edge: checkpoint whose SAM initialises the SAM teacher; vit-b, mobile: SAM of the "
        "student, where the mask teacher is another one; a file or checkpoint as --mask-teacher",
    )
    add("--text-tower", default="edge", help="edge: checkpoint whose frozen text tower to keep")
    add(
        "--mask-teacher",
        "--sam",
        dest="sam",
        default="",
        metavar="FILE|NAME",
        help="vit-b, mobile: weights of SAM ViT-B, L, H or MobileSAM, or a checkpoint with masks: "
        "the directory of `samclip pull` or `samclip convert`, or hf://OWNER/NAME",
    )
    add(
        "--clip",
        default="",
        metavar="FORM|NAME",
        help=f"vit-b, mobile: an open_clip model as {FORMS}, or a checkpoint with its text tower, "
        "such as one with SigLIP 2 or C-RADIO",
    )


def train_worker(settings: dict[str, Run]) -> None:
    """Run the merge on one worker; worker 0 writes the checkpoint."""
    run = replace(settings["run"], device=get_device())
    if run.readers is None:
        run = replace(run, readers=workers.readers(run.device))
    torch.set_num_threads(run.threads)
    keep_memory(STEP_BYTES)
    torch.manual_seed(run.recipe.seed)
    workers.check_shared(Folder(run.folder), run.device)
    merged = MERGES[run.recipe.kind](run)
    if workers.rank() == 0:
        net, config, origin = merged.net, merged.config, lineage(run, merged)
        net.cpu().eval().requires_grad_(False)
        with Folder(run.folder).parent.on_disk() as out:
            target, text = out / "checkpoint", card.unmeasured(config, origin)
            checkpoint.save(target, net, merged.text_encoder, config, origin, card=text)


def lineage(run: Run, merged: Merged) -> dict[str, Any]:
    """Return the origin of the weights: everything needed to repeat the run, and their licences."""
    recipe = run.recipe
    sets = sorted({*dict(recipe.photo_sets), *dict(recipe.region_sets), *recipe.named_sets})
    return {
        "teachers": merged.teachers,
        **licences(merged.published),
        "data": {name: open_source(f"{run.data}/{name}").digest() for name in sets},
        "recipe": asdict(recipe),
        "revision": _revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _revision() -> str:
    """Return the commit of this code, or ``unknown`` outside a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
