"""The parser of all commands."""

from typing import Any

from samclip import __version__
from samclip.cli import (
    classify,
    collection,
    completion,
    segment,
    service,
    sources,
    status,
    usage,
)
from samclip.cli.parts import PARTS
from samclip.cli.usage import Command, Parser

REQUESTS = (
    *(classify.CLASSIFY, segment.SEGMENT, segment.SEMANTIC, classify.EXPLAIN, segment.EVERYTHING),
    *(classify.EMBED, collection.INDEX, collection.SEARCH, collection.DELETE, collection.DESCRIBE),
    status.COMMAND,
)


def parser(whole: bool = False) -> Parser:
    """Return the parser of ``samclip``.

    whole: with the options of the commands in other modules too, as far as they are installed.
    """
    made = Parser(
        prog="samclip",
        description="Classify, segment and search images: one encoder, many heads.",
        examples=[
            'samclip classify cat.jpg --labels "a cat" "a dog"',
            "samclip segment photos/ --text cat --format coco > cats.json",
        ],
    )
    made.add_argument("--version", action="version", version=f"samclip {__version__}")
    subparsers = made.add_subparsers(title="commands", metavar="COMMAND [-h]", required=True)
    for command in REQUESTS:
        _add(subparsers, command)
    completion.add(subparsers, lambda: parser(whole=True))
    for name, part in PARTS.items():  # otherwise only for --help: samclip.cli handles these
        own = completion.parser_of(name) if whole else None
        parents = [own] if own else []
        subparsers.add_parser(name, help=part.help, add_help=False, parents=parents)
    return made


def _add(subparsers: Any, command: Command) -> None:
    made = subparsers.add_parser(
        command.name,
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        usage=f"%(prog)s {command.images}" if command.images else None,
        examples=command.examples,
    )
    if command.images:
        count = "*" if command.images.startswith("[") else "+"
        made.add_argument("images", nargs=count, metavar="IMAGE", help=sources.HELP)
        made.set_defaults(key="image", command=command.name)
    command.add(made)
    usage.formats(made, command.formats)
    if command.images:
        service.add_local(made)
    service.add_service(made)
