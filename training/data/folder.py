"""The folder of the photograph sets: from a flag, or from ``SAMCLIP_DATA``."""

import argparse
import os

VARIABLE = "SAMCLIP_DATA"


def photograph_sets(parser: argparse.ArgumentParser, flag: str, given: str | None) -> str:
    """Return the folder or URL given with ``flag``, or else the one in ``SAMCLIP_DATA``.

    Without either, the command ends with an error that says what is expected.
    """
    folder = given or os.environ.get(VARIABLE)
    if not folder:
        parser.error(
            f"no photographs: give {flag} or set {VARIABLE} to the folder that holds one folder "
            "per photograph set. docs/training.md lists the sets, their layouts, and where they "
            "are published"
        )
    return folder
