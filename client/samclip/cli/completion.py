"""``samclip completion``: the script with which a shell completes commands and options."""

import argparse
from collections.abc import Callable
from typing import Any

import shtab

from samclip.cli import parts


def add(subparsers: Any, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command; ``whole`` makes the parser of all commands with their options."""
    made = subparsers.add_parser(
        "completion",
        help="print the completion script of a shell",
        description="Print the script with which a shell completes samclip's options.",
        examples=[
            'eval "$(samclip completion bash)"',
            "samclip completion zsh > ~/.zfunc/_samclip",
        ],
    )
    made.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="its name")

    def run(args: argparse.Namespace) -> int:
        print(shtab.complete(whole(), args.shell))
        return 0

    made.set_defaults(run=run)


def parser_of(command: str) -> Any:
    """Return the parser of a command in another module, or None if that is not installed."""
    try:
        return parts.load(command).parser()
    except ModuleNotFoundError:
        return None
