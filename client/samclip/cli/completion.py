"""``samclip completion``: the script with which a shell completes commands and options."""

import argparse
from collections.abc import Callable
from typing import Any

import shtab

from samclip.cli import parts

FILES = {"IMAGE", "FILE", "SOURCE", "CHECKPOINT"}
FOLDERS = {"FOLDER", "DIR"}


def add(subparsers: Any, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command; ``whole`` makes the parser of all commands with their options."""
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
        parser = whole()
        _complete_paths(parser)
        print(shtab.complete(parser, args.shell))
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


def parser_of(command: str) -> Any:
    """Return the parser of a command in another module, or None if that is not installed."""
    try:
        return parts.load(command).parser()
    except ModuleNotFoundError:
        return None
