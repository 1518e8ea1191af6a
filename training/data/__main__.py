"""``python -m training.data SET …``: index photograph sets before a run needs them.

Reading the headers of millions of files takes hours, in which a cluster with GPUs would be idle.
"""

import argparse
from collections.abc import Sequence

from training.data.sources import open_source


def main(argv: Sequence[str] | None = None) -> int:
    """Open each set, which stores its index, and print its size."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description="Index photograph sets before a run."
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="folder or URL of a set")
    parser.add_argument("--split", default="train", help="the part to index (train)")
    arguments = parser.parse_args(argv)
    for location in arguments.sets:
        try:
            photographs = open_source(location, arguments.split)
        except (OSError, ImportError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {location}: {error}\n")
        print(f"{location}: {len(photographs):,} photographs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
