"""Import heads of one's own in a process apart, so that faults are told before a service starts."""

import subprocess
import sys
import traceback
from collections.abc import Sequence

from samclip_core.answers.own import open_head
from samclip_core.errors import HeadError
from services.heads.own.parameters import Parameters
from services.settings import SettingsError

IMPORT_S = 300
"""Limit of importing all of them, far above that of large libraries from a slow disk."""


def check(specs: Sequence[str]) -> None:
    """Raise SettingsError, after the traceback on stderr, if one cannot be imported."""
    # -P: a file in the current directory may have the name of a module.
    command = [sys.executable, "-P", "-m", __name__, *specs]
    try:
        if specs and subprocess.run(command, check=False, timeout=IMPORT_S).returncode:
            raise SettingsError("a head of your own cannot be served: see above")
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"{', '.join(specs)} cannot be imported in {IMPORT_S} seconds: what takes long belongs "
            "into load"
        ) from error


def main(specs: Sequence[str]) -> int:
    """Import each; return 1 if one has failed."""
    failed = 0
    for spec in specs:
        try:
            Parameters(open_head(spec))
        except HeadError as error:
            failed = 1
            print(f"the head {spec}: {error}", file=sys.stderr)
        except Exception:
            failed = 1
            print(f"the head {spec} cannot be imported:", file=sys.stderr)
            traceback.print_exc(limit=-3)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
