"""``python -m samclip.cli``: the ``samclip`` command."""

from samclip.cli import program

if __name__ == "__main__":
    program()
