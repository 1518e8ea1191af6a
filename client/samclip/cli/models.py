"""``samclip models``: the published models, or those that a service has."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module

from samclip.cli import commands, formats, service
from samclip.cli.usage import Parser
from samclip.client import Client
from samclip.errors import ServiceError, plain

TIMEOUT_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the models; return the exit code."""
    args = parser().parse_args(argv)
    if args.server is None:
        return _published(args.json)
    try:
        with Client(api_key=args.api_key, **service.channel(args)) as client:
            models = client.models()
    except (ServiceError, OSError) as error:
        print(plain(f"samclip models: {error}"), file=sys.stderr)
        return 1
    if args.json:
        print(formats.as_json([asdict(model) for model in models], indent=2))
        return 0
    rows = [
        {"model": each.name, "kind": each.kind, "digest": each.digest[:12]}
        | {"state": service.about(each)}
        for each in models
    ]
    print(formats.table(rows))
    return 0


def _published(as_json: bool) -> int:
    try:
        published = import_module("samclip_core.commands.models")
    except ModuleNotFoundError as error:
        print(
            f"{commands.lacking('models', error)}; with --server, the models of a service are "
            "listed without it",
            file=sys.stderr,
        )
        return 1
    published.show(as_json)
    return 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip models",
        description="List the published models, which serve and pull make checkpoints of: their "
        "use, size, cost, published figures and licences. With --server, list the models of a "
        "service.",
        examples=[
            "samclip models",
            "samclip serve --models edge,mobile",
            "samclip models --server",
        ],
    )
    made.add_argument("--json", action="store_true", help="print JSON, with all details")
    asked = made.add_argument_group("service")
    service.add_address(asked, TIMEOUT_S, nargs="?", const=service.server())
    return made
