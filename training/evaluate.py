"""``samclip eval``: evaluate a checkpoint in the paper's tasks on held-out photographs.

A suite takes a model and a folder and returns named figures. Our own photograph sets and the public
data sets, in their published layouts, are read in place; ``suites`` lists them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from rich_argparse import RawDescriptionRichHelpFormatter

from samclip_core.config import SamClipConfig, TaskSizes
from samclip_core.engine.base import DtypeChoice, EngineName
from samclip_core.engine.processor import keep_memory
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint, manifest
from samclip_core.model import SamClip
from training.evaluation import parallel, probing
from training.evaluation.suite import (
    FeatureMap,
    Head,
    Metrics,
    Options,
    Prompts,
    Protocol,
    add_part,
    check_there,
    openai_templates,
)
from training.options import photograph_sets
from training.results.card import complete
from training.results.tables import figure_table
from training.suites import OWN, PROBES, SLOW, SUITES, Suite, described

EXAMPLES = """examples:
  samclip eval --suite words --root photos/
  samclip eval --checkpoint runs/vit-b --suite voc --root VOC2012 --out voc.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a checkpoint; print the figures and write them as JSON and Markdown."""
    options = parser()
    arguments = options.parse_args(argv)
    parts = arguments.limit, arguments.size, arguments.protocol
    restricted = any(parts) or arguments.suite != "all"
    if arguments.card and restricted:
        options.error(
            "--card needs full results on all our own sets: remove --limit, --size, --protocol and "
            "--suite"
        )
    if arguments.workers > 1 and arguments.suite in (*SLOW, *PROBES):
        options.error(f"--workers: {arguments.suite} runs in one process")
    arguments.root = Path(photograph_sets(options, "--root", arguments.root))
    try:
        if arguments.workers > 1:
            parallel.run(_measure, arguments, arguments.workers)
        else:
            _measure(arguments)
    except (SamClipError, OSError, ValueError) as error:
        print(f"samclip eval: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"samclip eval: a data set file has no {error} key", file=sys.stderr)
        return 1
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    directory = checkpoint.resolve(arguments.checkpoint)
    chosen = _chosen(arguments.suite, checkpoint.read_config(directory))
    check_there(arguments.root, [name for suite in chosen for name in suite.reads])
    rank, count = parallel.place()
    threads = arguments.threads or max(1, torch.get_num_threads() // count)
    torch.set_num_threads(threads)
    keep_memory()
    device = arguments.device
    if device == "cuda" and count > 1:
        device = f"cuda:{rank % torch.cuda.device_count()}"
    engine: EngineName = arguments.engine
    model = SamClip.load(directory, device, arguments.dtype, engine=engine)
    public_names = any(suite.names for suite in chosen)
    if arguments.templates == "openai" or (public_names and arguments.templates is None):
        model.config = replace(model.config, templates=openai_templates())
    if arguments.size is not None:
        model.config.check_size(arguments.size)
        sizes = TaskSizes(
            classify=arguments.size, semantic=arguments.size, retrieval=arguments.size
        )
        model.config = replace(model.config, task_sizes=sizes)
    names = vars(Options(root=arguments.root))
    options = Options(**{name: getattr(arguments, name) for name in names})
    metrics: Metrics = {}
    for suite in chosen:
        metrics |= suite.task(model, options)
    own = arguments.suite in ("all", *OWN, *SLOW)
    own |= arguments.suite in PROBES and not probing.is_public(arguments.root)
    part = arguments.part if own else "all"  # public sets are measured whole
    if rank:
        return
    files, digest = manifest.read(directory)
    fitted = {name: files[name] for name in (checkpoint.CONFIG, checkpoint.WEIGHTS)}
    origin = {"digest": digest, "part": part, "dtype": model.dtype, **fitted}
    _write(arguments.out, origin, metrics)
    if arguments.card:
        print(f"digest {complete(directory, metrics, arguments.part)}")


def _chosen(name: str, config: SamClipConfig) -> list[Suite]:
    """Return the suites of a name; of all, those that the checkpoint can be measured with."""
    if name != "all":
        return [SUITES[name]]
    left_out = [own for own, suite in OWN.items() if suite.masks and not config.masks]
    if left_out:
        print(f"{config.name} makes no masks: without {', '.join(left_out)}", file=sys.stderr)
    return [suite for own, suite in OWN.items() if own not in left_out]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip eval",
        description=main.__doc__,
        epilog=f"{described()}\n\n{EXAMPLES}",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    add = made.add_argument
    add("--checkpoint", default="edge", help="name or directory")
    suites = ["all", *SUITES]
    add("--suite", choices=suites, default="all", metavar="NAME", help="all: our own, or see below")
    add("--root", help="folder of the data set, or of our own sets (SAMCLIP_DATA)")
    add_part(made)
    add("--size", type=_positive, help="side of the frame for the CLIP head; masks keep SAM's own")
    add("--limit", type=_positive, help="images per set, spread evenly over it")
    add(
        "--protocol",
        choices=get_args(Protocol),
        help="semantic: served, or paper: squashed frames, without SAM's attention (both)",
    )
    add("--refine", action="store_true", help="semantic: also measure both heads together")
    add(
        "--prompts",
        choices=get_args(Prompts),
        default="own",
        help="semantic, both heads: paper also measures its points, and the difference (own)",
    )
    add("--detections", type=Path, help="boxes: a detector's JSON (docs/training.md), not the true")
    add(
        "--features",
        choices=get_args(FeatureMap),
        default="tokens",
        help="probes: the encoder's tokens, SAM's embedding, or CLIP's map (for names its vector)",
    )
    add("--head", choices=get_args(Head), default="linear", help="probe: head of table 3 (linear)")
    add("--seed", type=int, default=0, help="probes: seed")
    add("--epochs", type=_positive, help="probes: passes over the training set (50; classify: 90)")
    add(
        "--templates",
        choices=["own", "openai"],
        help="own: the checkpoint's; openai: the paper's 80 (default of public sets with names)",
    )
    add("--out", type=Path, default=Path("out/metrics.json"))
    add("--card", action="store_true", help="write the figures into the checkpoint's model card")
    add("--device", type=_device, default="cpu", help="torch device: cpu, cuda, cuda:1")
    add("--engine", choices=get_args(EngineName), default="torch", help="inference engine (torch)")
    add(
        "--dtype",
        choices=get_args(DtypeChoice),
        default="float32",
        help="encoder precision (float32)",
    )
    add("--threads", type=_positive, help="CPU threads of each worker (all)")
    add("--workers", type=_positive, default=1, help="processes that share the pictures (1)")
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")
    return int(text)


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not available: {reason}") from error
    return text


def _write(out: Path, origin: dict[str, str], metrics: Metrics) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(origin | metrics, indent=2) + "\n")
    shown = figure_table(metrics, f"figure ({origin['part']})")
    out.with_suffix(".md").write_text(shown)
    print(shown, end="")


if __name__ == "__main__":
    raise SystemExit(main())
