"""The parser of all commands, and the script with which a shell completes them."""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import shtab

from samclip import __version__
from samclip.cli import answers, ask, classify, collection, concept, segment, service, usage
from samclip.cli.usage import Command, Parser

FILES = {"IMAGE", "FILE", "SOURCE", "CHECKPOINT"}
FOLDERS = {"FOLDER", "DIR"}
REQUESTS = (
    *(classify.CLASSIFY, segment.SEGMENT, segment.SEMANTIC, classify.EXPLAIN, segment.EVERYTHING),
    *(ask.ASK, classify.EMBED, collection.INDEX, collection.SEARCH, collection.DELETE),
    *(collection.DESCRIBE, concept.CONCEPT, service.STATUS),
)


class ExternalCommand(NamedTuple):
    """A command in another module, which defines ``parser()`` and ``main(argv) -> exit status``."""

    module: str
    extra: str  # the pip extras with its dependencies, and those of the commands that follow
    help: str


PARTS = {
    "serve": ExternalCommand("services.launch.serve", "serve", "run the service until Ctrl-C"),
    "doctor": ExternalCommand("services.launch.doctor", "serve", "check what a service needs here"),
    "keys": ExternalCommand(
        "services.front_door.keys", "serve", "create, list and remove API keys"
    ),
    "front-door": ExternalCommand(
        "services.front_door.haproxy", "serve", "run the front door of a Ray cluster"
    ),
    "cache": ExternalCommand(
        "services.cache.command", "serve", "inspect, purge or warm the embedding cache"
    ),
    "batch": ExternalCommand(
        "services.lake.batch", "lake", "answers about any number of images, as tables"
    ),
    "convert": ExternalCommand(
        "samclip_core.commands.convert", "export", "convert official weights to a checkpoint"
    ),
    "export": ExternalCommand(
        "samclip_core.commands.export", "export", "export a checkpoint's graphs for CPUs"
    ),
    "push": ExternalCommand(
        "samclip_core.commands.push", "hub", "publish a checkpoint on the Hugging Face hub"
    ),
    "pull": ExternalCommand(
        "samclip_core.commands.pull", "core", "make a checkpoint of a published model, or fetch one"
    ),
    "models": ExternalCommand(
        "samclip.cli.models", "core", "list the published models, or a service's"
    ),
    "train": ExternalCommand("training.train", "train", "train a checkpoint"),
    "reindex": ExternalCommand(
        "services.retrieval.reindex", "serve", "rebuild a collection for another checkpoint"
    ),
    "backup": ExternalCommand(
        "services.retrieval.backup", "serve", "write all collections to a file"
    ),
    "restore": ExternalCommand(
        "services.retrieval.restore", "serve", "add the collections of a backup"
    ),
    "eval": ExternalCommand("training.evaluate", "train", "evaluate a checkpoint"),
    "calibrate": ExternalCommand(
        "training.fitting.calibrate", "train", "fit a checkpoint's scores to photographs"
    ),
    "cost": ExternalCommand("training.claims.cost", "train", "compare what models cost here"),
    "probe": ExternalCommand("services.probe.command", "probe", "teach a head classes of your own"),
    "info": ExternalCommand(
        "samclip_core.commands.info", "core", "show a checkpoint's config, lineage and digest"
    ),
    "mcp": ExternalCommand(
        "services.gateway.adapters.mcp.server", "mcp", "offer a service as tools for assistants"
    ),
    "demo": ExternalCommand("samclip.demo", "demo", "run sample photographs through every head"),
}

FIRST = """\
To begin with:

  samclip serve                                     # http://127.0.0.1:8000
  samclip classify photo.jpg --labels cat dog       # what is in a photograph?
  samclip segment photo.jpg --text cat --out found  # where are the cats?

Without a service, add --local. All commands: samclip --help"""
"""The answer to ``samclip`` alone."""
GROUPS = {
    "what most people use": "classify segment semantic everything embed index search batch probe "
    "serve status doctor demo",
    "the rest": "explain ask delete describe concept reindex backup restore models pull convert "
    "export push info train eval calibrate cost keys front-door cache mcp completion",
}
"""The commands in the order of --help, under these headings."""
HELPS = Path(__file__).with_name("helps.json")
"""What --help prints, by the words of a command: its packages take seconds to import, if they are
installed."""


def parser(whole: bool = False) -> Parser:
    """Return the parser of ``samclip``.

    whole: with the options of the commands in other modules too, as far as they are installed.
    """
    made = Parser(
        prog="samclip",
        usage="%(prog)s [--version] COMMAND …; %(prog)s COMMAND --help has its options",
        description="Classify, segment and search images: one encoder, many heads.",
        examples=[
            'samclip classify cat.jpg --labels "a cat" "a dog"',
            "samclip segment photos/ --text cat --format coco > cats.json",
        ],
    )
    made.add_argument("--version", action="version", version=f"samclip {__version__}")
    subparsers = made.add_subparsers(
        title="commands", metavar="COMMAND", prog="samclip", required=True
    )
    requests = {command.name: command for command in REQUESTS}
    for heading, names in GROUPS.items():
        usage.heading(subparsers, heading)
        for name in names.split():
            if name in requests:
                _add(subparsers, requests[name])
            elif name == "completion":
                _add_completion(subparsers)
            else:  # only for --help and completion: samclip.cli runs these
                parents = _installed(name) if whole else []
                about = PARTS[name].help
                subparsers.add_parser(name, help=about, add_help=False, parents=parents)
    return made


def _add(subparsers: Any, command: Command) -> None:
    made = subparsers.add_parser(
        command.name,
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        usage=f"%(prog)s {command.usage}",
        examples=command.examples,
    )
    if command.first:
        metavar, help = command.first
        made.add_argument(metavar.lower(), metavar=metavar, help=help)
    if command.about_images:
        count = "*" if command.usage.startswith("[") else "+"
        made.add_argument("images", nargs=count, metavar="IMAGE", help=answers.HELP)
        made.set_defaults(key="image", command=command.name)
    command.add(made)
    usage.formats(made, command.formats)
    if command.about_images:
        service.add_local(made)
    many = command.about_images or command is collection.INDEX
    service.add_service(made, math.inf if many else 60.0)


def _add_completion(subparsers: Any) -> None:
    made = subparsers.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Print the script with which a shell completes samclip's options.",
        examples=[
            "samclip completion bash > ~/.local/share/bash-completion/completions/samclip",
            "samclip completion zsh > ~/.zfunc/_samclip",
        ],
    )
    made.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="its name")

    def run(args: argparse.Namespace) -> int:
        complete = parser(whole=True)
        _complete_paths(complete)
        print(shtab.complete(complete, args.shell))
        return 0

    made.set_defaults(run=run)


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Have files and folders completed where an option or argument takes one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _complete_paths(one)
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _installed(command: str) -> list[Any]:
    """Return the parser of a command in another module; none if that is not installed."""
    try:
        return [load(command).parser()]
    except ModuleNotFoundError:
        return []


def run(command: str, argv: list[str]) -> int:
    """Run a command and return its exit status; 1 if a package that it needs is missing."""
    if {"-h", "--help"} & {*argv}:
        words = " ".join([command, *argv[:1]])
        known = json.loads(HELPS.read_text())
        print(known.get(words) or known[command], end="")
        sys.exit(0)
    try:
        module = load(command)
    except ModuleNotFoundError as error:
        print(lacking(command, error), file=sys.stderr)
        return 1
    return int(module.main(argv))


def helps() -> dict[str, str]:
    """Return what HELPS has, from the parsers of all commands in other modules."""
    found = dict[str, str]()
    for name in PARTS:
        made = load(name).parser()
        found[name] = made.format_help()
        for action in made._actions:
            if isinstance(action, argparse._SubParsersAction):
                each = action.choices.items()
                found |= {f"{name} {word}": parser.format_help() for word, parser in each}
    return found


def lacking(command: str, error: ModuleNotFoundError) -> str:
    """Return the hint at all that a command needs."""
    return (
        f"samclip {command} needs {error.name}, which is not installed: "
        f"in a clone, run pip install -e '.[{PARTS[command].extra}]'"
    )


def load(command: str) -> ModuleType:
    """Import a command's module. Raises ModuleNotFoundError if a package is missing."""
    return importlib.import_module(PARTS[command].module)


if __name__ == "__main__":  # writes HELPS: COLUMNS=80 NO_COLOR=1 python -m samclip.cli.commands
    HELPS.write_text(json.dumps(helps(), indent=0, ensure_ascii=False) + "\n")
