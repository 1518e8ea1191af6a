"""``samclip doctor``: check what a service needs on this machine."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from samclip.cli import formats, usage
from samclip.cli.usage import Parser
from samclip.errors import plain

from samclip_core.errors import CheckpointError
from services.launch import checks, flags, runtimes
from services.settings import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if something is wrong."""
    args = parser().parse_args(argv)
    try:
        settings = flags.read(args)
        if args.measure:
            runtimes.choose(settings, again=True)
        found = [*checks.all_checks(settings), *runtimes.findings(settings)]
    except (SettingsError, CheckpointError) as error:
        print(f"samclip doctor: {error}", file=sys.stderr)
        return 1
    if args.format == "table":
        for one in found:
            print(plain(f"{one.state:7}{one.check:12}{one.found}"))
            if one.advice:
                print(f"{'':19}{one.advice}")
    else:
        formats.print_rows(args, [asdict(finding) for finding in found])
    return 1 if any(finding.state == "wrong" for finding in found) else 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip doctor",
        usage="%(prog)s [--format FORMAT] [--config FILE] [--SETTING VALUE …]",
        description="Check what a service with these settings needs on this machine: versions,\n"
        "processor, GPU, memory, disk, ports, Redis, checkpoint and the runtimes chosen for it.\n"
        "Each line says what was found, and what to do about it. The exit status is 1 if\n"
        "something is wrong.",
        examples=[
            "samclip doctor",
            "samclip doctor --device cuda --redis-url redis://127.0.0.1:6379/0",
        ],
    )
    usage.formats(made)
    made.add_argument(
        "--measure", action="store_true", help="choose again between runtimes and precisions"
    )
    flags.add(made)
    return made
