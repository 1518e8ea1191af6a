"""Commands whose modules need optional dependencies; they are imported when they are called."""

import importlib
import sys
from types import ModuleType
from typing import NamedTuple


class Part(NamedTuple):
    """A command in another module, which defines ``parser()`` and ``main(argv) -> exit status``."""

    module: str
    extra: str  # the pip extra with its dependencies
    help: str


PARTS = {
    "serve": Part("services.launch.serve", "serve", "run the service until Ctrl-C"),
    "doctor": Part("services.launch.doctor", "serve", "check what a service needs here"),
    "keys": Part("services.front_door.keys", "serve", "create, list and remove API keys"),
    "front-door": Part(
        "services.front_door.haproxy", "serve", "run the front door of a Ray cluster"
    ),
    "cache": Part("services.cache.command", "serve", "inspect, purge or warm the embedding cache"),
    "batch": Part("services.lake.batch", "lake", "answers about any number of images, as tables"),
    "convert": Part(
        "samclip_core.commands.convert", "torch", "convert official weights to a checkpoint"
    ),
    "export": Part(
        "samclip_core.commands.export", "export", "export a checkpoint's graphs for CPUs"
    ),
    "push": Part(
        "samclip_core.commands.push", "hub", "publish a checkpoint on the Hugging Face hub"
    ),
    "pull": Part(
        "samclip_core.commands.pull", "hub", "make a checkpoint of a published model, or fetch one"
    ),
    "models": Part("samclip_core.commands.models", "core", "list the published models"),
    "train": Part("training.train", "train", "train a checkpoint"),
    "reindex": Part(
        "services.retrieval.reindex", "serve", "rebuild a collection for another checkpoint"
    ),
    "backup": Part("services.retrieval.backup", "serve", "write all collections to a file"),
    "restore": Part("services.retrieval.restore", "serve", "add the collections of a backup"),
    "eval": Part("training.evaluation.evaluate", "train", "evaluate a checkpoint"),
    "calibrate": Part(
        "training.evaluation.calibrate", "train", "fit a checkpoint's scores to photographs"
    ),
    "info": Part(
        "samclip_core.commands.info", "core", "show a checkpoint's config, lineage and digest"
    ),
    "mcp": Part(
        "services.gateway.adapters.mcp.server", "mcp", "offer a service as tools for assistants"
    ),
    "demo": Part("samclip.demo", "demo", "run sample photographs through every head"),
}


def run(command: str, argv: list[str]) -> int:
    """Run a command and return its exit status; 1 if a package that it needs is missing."""
    try:
        module = load(command)
    except ModuleNotFoundError as error:
        print(
            f"samclip {command} needs {error.name}, which is not installed: "
            f"in a clone, run pip install -e '.[{PARTS[command].extra}]'",
            file=sys.stderr,
        )
        return 1
    return int(module.main(argv))


def load(command: str) -> ModuleType:
    """Import a command's module. Raises ModuleNotFoundError if a package is missing."""
    return importlib.import_module(PARTS[command].module)
