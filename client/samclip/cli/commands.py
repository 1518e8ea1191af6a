"""The parser of all commands, and the script with which a shell completes them."""

import argparse
from typing import Any

import shtab

from samclip import __version__
from samclip.cli import (
    classify,
    collection,
    concept,
    parts,
    segment,
    service,
    sources,
    usage,
)
from samclip.cli.usage import Command, Parser

FILES = {"IMAGE", "FILE", "SOURCE", "CHECKPOINT"}
FOLDERS = {"FOLDER", "DIR"}
REQUESTS = (
    *(classify.CLASSIFY, segment.SEGMENT, segment.SEMANTIC, classify.EXPLAIN, segment.EVERYTHING),
    *(classify.EMBED, collection.INDEX, collection.SEARCH, collection.DELETE, collection.DESCRIBE),
    *(concept.CONCEPT, service.STATUS),
)

FIRST = """\
To begin with:

  samclip serve                                     # http://127.0.0.1:8000
  samclip classify photo.jpg --labels cat dog       # what is in a photograph?
  samclip segment photo.jpg --text cat --out found  # where are the cats?

Without a service, add --local. All commands: samclip --help"""
"""The answer to ``samclip`` alone."""
GROUPS = {
    "ask about images": "classify segment semantic explain everything embed batch",
    "collections": "index search delete describe concept reindex backup restore",
    "models": "models pull convert export push info",
    "serve": "serve status doctor keys front-door cache mcp",
    "train": "train eval calibrate",
    "more": "demo completion",
}
"""The commands in the order of --help, under these headings."""


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
                about = parts.PARTS[name].help
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
    if command.about_images:
        count = "*" if command.usage.startswith("[") else "+"
        made.add_argument("images", nargs=count, metavar="IMAGE", help=sources.HELP)
        made.set_defaults(key="image", command=command.name)
    command.add(made)
    usage.formats(made, command.formats)
    if command.about_images:
        service.add_local(made)
    service.add_service(made)


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
        return [parts.load(command).parser()]
    except ModuleNotFoundError:
        return []
