"""The paper's claims: commands that print a table of what checkpoints and their teachers reach.

That two heads beat one is measured by ``samclip eval --suite semantic``.
"""

import argparse
from pathlib import Path

from training.evaluation.suite import Options
from training.options import photograph_sets


def claim_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"training.claims.{name}", description=about)
    parser.add_argument("--root", help="folder of the photograph sets (SAMCLIP_DATA)")
    parser.add_argument("--limit", type=int, help="photographs per set, spread evenly over it")
    return parser


def options_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Options:
    """Return the photographs that the command asks for; exit if it names no folder."""
    root = Path(photograph_sets(parser, "--root", given.root))
    return Options(root=root, limit=given.limit, part=getattr(given, "part", "all"))
