"""``python -m samclip.cli``: the ``samclip`` command."""

import sys

from samclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
