"""``samclip concept``: names of one's own for what examples show."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from samclip.cli import answers, formats
from samclip.cli.service import connect
from samclip.cli.usage import Command, UsageError
from samclip.types import Concept, Example


class _Place(argparse.Action):
    """An option in order: an image begins an example, and a box belongs to the one before it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        given = list(namespace.given or ())
        if self.metavar == "IMAGE":
            given.append((values, option == "--not", None))
        elif not given or given[-1][2] is not None:
            raise UsageError("concept add takes one --box after each IMAGE")
        else:
            given[-1] = (*given[-1][:2], tuple(values))
        namespace.given = [each for each in given if each[0] is not None]


def _add(parser: argparse.ArgumentParser) -> None:
    add: Any = parser.add_argument
    add("action", choices=["add", "list", "delete"], help="what to do")
    add("name", nargs="?", default="", metavar="NAME", help="the concept, to add or delete")
    image = "add: image with an example: " + answers.HELP
    add("given", nargs="?", action=_Place, metavar="IMAGE", help=image)
    form = ("X0", "Y0", "X1", "Y1")
    add("--box", type=float, nargs=4, dest="given", action=_Place, metavar=form, help="where it is")
    add("--also", dest="given", action=_Place, metavar="IMAGE", help="another example; then --box")
    help = "example of what it is not; then --box"
    add("--not", dest="given", action=_Place, metavar="IMAGE", help=help)
    columns = [each.name for each in fields(Concept)]
    parser.set_defaults(run=_run, columns=lambda args: columns if args.action != "delete" else ())


def _run(args: argparse.Namespace) -> int:
    given = args.given or []
    if (args.action != "list") != bool(args.name):
        raise UsageError("concept add and delete take the NAME of one concept, list takes none")
    if (args.action == "add") != bool(given):
        raise UsageError("concept add, and only that, takes an IMAGE with a --box")
    with connect(args) as client:
        if args.action == "delete":
            client.delete_concept(args.name)
            return formats.print_rows(args, [{"name": args.name, "deleted": 1}], client.model)
        if args.action == "list":
            return formats.print_rows(args, [*map(vars, client.concepts())], client.model)
        made: Concept = client.add_concept(args.name, _examples(given))
        return formats.print_rows(args, [vars(made)], client.model)


def _examples(given: Sequence[tuple[str, bool, Any]]) -> list[Example]:
    for name, _, box in given:
        if box is None:
            raise UsageError(f"{name} has no --box: say where the example is")
    return [
        Example(answers.read(answers.one(name)), box=box, negative=negative)
        for name, negative, box in given
    ]


CONCEPT = Command(
    "concept",
    "name what examples show: concept:NAME is then a label or a text",
    [
        "samclip concept add mug a.jpg --box 40 30 180 200 --also b.jpg --box 5 9 70 88",
        "samclip concept add mug a.jpg --box 40 30 180 200 --not c.jpg --box 9 9 90 95",
        'samclip segment shelf.jpg --text "concept:mug" --out mugs/',
        "samclip concept list",
        "samclip concept delete mug",
    ],
    _add,
    "(add NAME IMAGE --box … | delete NAME | list) [options]",
)
