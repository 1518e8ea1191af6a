"""The README's code blocks: those that tests run, and console commands that are only shown."""

import re
import shlex

from tests.checkout import ROOT

TEXT = (ROOT / "README.md").read_text()


def runnable() -> list[tuple[str, str]]:
    """Return (language, code) of each bash and Python block, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def shown() -> list[list[str]]:
    """Return the words of each command in the console blocks, without leading variables."""
    blocks = re.findall(r"^```console\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [[w for w in words if not re.match(r"[A-Z_]+=", w)] for words in commands]
