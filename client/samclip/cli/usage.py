"""Options that several commands share, and how their help reads."""

import argparse
import re
import textwrap
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from samclip.errors import plain
from samclip.images import SUFFIXES

Run = Callable[[argparse.Namespace], int]

_IMAGE_HINT = (
    "; options with several values, such as --labels, take the words after them: write the images "
    "first, or after --"
)
_LISTED = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=,|\Z)|([^,]+))')
"""A label of a list between commas: in quotes, or as it is."""


class UsageError(ValueError):
    """Options that do not fit together."""


class _Formatter(RawDescriptionRichHelpFormatter):
    """Shows the subcommands of a parser under their headings."""

    def _iter_indented_subactions(
        self, action: argparse.Action
    ) -> Generator[argparse.Action, None, None]:
        headings = getattr(action, "headings", {})
        for number, subaction in enumerate(super()._iter_indented_subactions(action)):
            if number in headings:
                yield argparse.Action([], "", metavar=f"\n  {headings[number]}")
            yield subaction


def heading(subparsers: Any, text: str) -> None:
    """Show the subcommands that are added from now on under a heading."""
    if not hasattr(subparsers, "headings"):
        subparsers.headings = {}
    subparsers.headings[len(subparsers.choices)] = text


class InsteadOf(argparse.Action):
    """An option that may be passed instead of a positional argument."""

    def __init__(self, *args: Any, positional: argparse.Action, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._positional = positional

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        setattr(namespace, self.dest, values)
        self._positional.required = False


class Parser(argparse.ArgumentParser):
    """A parser whose help has examples, and which says where images are written."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options["description"] = textwrap.fill(options.get("description") or "", 79)
        if examples:
            options["epilog"] = "\n".join(["examples:", *(f"  {line}" for line in examples)])
        super().__init__(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Suggest the options that are spelt like an unknown one."""
        known, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            close = get_close_matches(word.partition("=")[0], self._option_string_actions, 3, 0.75)
            if word.startswith("--") and close:
                self.error(f"unrecognized option: {word}. Did you mean {' or '.join(close)}?")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest the choices that are spelt like a wrong one."""
        close = get_close_matches(str(value), [*map(str, action.choices or ())], 3)
        if action.choices is not None and value not in action.choices and close:
            guess = " or ".join(close)
            raise argparse.ArgumentError(
                action, f"invalid choice: {value!r}. Did you mean {guess}?"
            )
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        swallowed = any(each.option_strings and each.nargs == "+" for each in self._actions)
        hint = _IMAGE_HINT if swallowed and message.endswith("IMAGE") else ""
        super().error(plain(message) + hint)


def texts(parser: argparse._ActionsContainer, name: str, help: str, required: bool = False) -> None:
    """Add an option that takes one or several texts, as they are."""
    parser.add_argument(
        name,
        type=_text,
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        required=required,
        help=help,
    )


def _text(value: str) -> str:
    """Return the value. An image's path is an error: it was meant as an IMAGE."""
    if Path(value).suffix.lower() in SUFFIXES and Path(value).is_file():
        raise argparse.ArgumentTypeError(f"{value} is an image: write images first, or after --")
    return value


def tiles(parser: argparse._ActionsContainer) -> None:
    """Add the option that looks closely at large images."""
    parser.add_argument(
        "--tiles",
        type=_tiles,
        default=0,
        metavar="N",
        help="also search N overlapping tiles along the longer side of a large image, for small "
        "objects; auto: as many as it needs",
    )


def _tiles(value: str) -> Any:
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is neither a number nor auto") from None


def count(text: str, least: int = 0) -> int:
    """Return the value of an option that is a number of things, ``least`` or more."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
    return value


def positive(text: str) -> int:
    return count(text, 1)


def split(values: Sequence[str]) -> list[str]:
    """Return labels as given; a single value is a list between commas, with "quotes" as in CSV."""
    if len(values) != 1:
        return list(values)
    found = _LISTED.findall(values[0])
    return [label for one, two in found if (label := one.replace('""', '"') or two.strip())]


def pairs(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    """Add a repeatable option that takes KEY=VALUE."""
    parser.add_argument(
        name, type=_pair, action="append", default=[], metavar="KEY=VALUE", help=help
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def boxes(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --box, in pixels; repeatable."""
    form = ("X0", "Y0", "X1", "Y1")
    parser.add_argument(
        "--box", type=float, nargs=4, action="append", default=[], metavar=form, help=help
    )


def out(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --out."""
    more = "; as FILE.png, or - for stdout, only the overlay"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=help + more)


ROWS = ("table", "json", "jsonl", "csv")


@dataclass(frozen=True)
class Command:
    """A request of the command line; ``add`` adds its own options and its ``run``.

    usage: its arguments and what else is needed.
    about_images: whether it asks about IMAGEs; ``[`` begins ``usage`` if there may be none.
    first: the metavar and the help of an argument before these, whose lower case is its name.
    """

    name: str
    help: str
    examples: Sequence[str]
    add: Callable[[argparse.ArgumentParser], None]
    usage: str
    about_images: bool = False
    formats: Sequence[str] = ROWS
    first: tuple[str, str] | None = None


def formats(parser: argparse.ArgumentParser, choices: Sequence[str] = ROWS) -> None:
    """Add --format and its short form --json."""
    parser.add_argument(
        "--format", choices=choices, default="table", help="form of the output (table)"
    )
    parser.add_argument(
        "--json", action="store_const", dest="format", const="json", help="same as --format json"
    )
